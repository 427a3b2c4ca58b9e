/*
 * What the kernel tells of the proxy's processes (--pids): their CPU time and their memory; and of sockets.
 */

/* User and system time of all threads, in nanoseconds: clock_getcpuclockid. */
static int64_t cpu_of_pids(void)
{
    int64_t sum = 0;
    for (int i = 0; i < opt.pid_count; i++) {
        clockid_t clock;
        if (clock_getcpuclockid(opt.pids[i], &clock))
            fail("process %d has gone", (int)opt.pids[i]);
        sum += clock_ns(clock);
    }
    return sum;
}

/* The number behind `name` in a file of /proc. */
static long number_in(const char *path, const char *name)
{
    char line[512];
    long value = -1;
    FILE *file = fopen(path, "r");
    while (file && value < 0 && fgets(line, sizeof line, file)) {
        const char *at = strstr(line, name);
        if (at)
            value = atol(at + strlen(name));
    }
    if (file)
        fclose(file);
    if (value < 0)
        fail("the kernel does not tell %s in %s", name, path);
    return value;
}

/* What `file` in /proc/PID says of `name`, for all processes together. */
static long sum_of(const char *file, const char *name)
{
    long sum = 0;
    char path[64];
    for (int i = 0; i < opt.pid_count; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", (int)opt.pids[i], file);
        sum += number_in(path, name);
    }
    return sum;
}

/* Resident memory in KB. */
static long resident_kb(void)
{
    return sum_of("smaps_rollup", "Rss:");
}

/* The most that it was since `forget_peak`, in KB. */
static long peak_kb(void)
{
    return sum_of("status", "VmHWM:");
}

static void forget_peak(void)
{
    char path[64];
    for (int i = 0; i < opt.pid_count; i++) {
        snprintf(path, sizeof path, "/proc/%d/clear_refs", (int)opt.pids[i]);
        FILE *file = fopen(path, "w");
        bool done = file && fputs("5", file) >= 0; /* proc(5): resets the peak resident set size */
        if (!file || fclose(file) || !done)
            fail("%s: %s", path, strerror(errno));
    }
}

/* How long this process was ready to run while its CPU ran another, in ns. */
static int64_t waited_ns(void)
{
    long long waited = 0;
    FILE *file = fopen("/proc/self/schedstat", "r"); /* not every kernel has it */
    if (file) {
        if (fscanf(file, "%*d %lld", &waited) != 1)
            waited = 0;
        fclose(file);
    }
    return waited;
}

/* What all TCP sockets of this network namespace hold in their buffers, in KB. */
static long socket_kb(void)
{
    FILE *file = fopen("/proc/net/sockstat", "r");
    char line[256];
    long pages = -1;
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "TCP:", 4) && strstr(line, " mem "))
            pages = atol(strstr(line, " mem ") + 5);
    if (file)
        fclose(file);
    if (pages < 0)
        fail("the kernel does not tell the memory of TCP sockets");
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}
