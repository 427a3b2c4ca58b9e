/*
 * load: the load generator of the benchmark.
 *
 * One process, one thread, one epoll loop that plays both ends: the clients, which connect to a proxy, and the
 * backend, to which the proxy connects. So all the work that is not the proxy's stays on one CPU, and whoever reads
 * the CPU clock of the proxy around a counted window reads the cost of the proxy alone.
 *
 *   load roundtrip   N connections, each sends a message, waits for its echo, sends the next; with --rate at fixed times
 *   load open        N at a time: connect, opening handshake, one message, closing handshake, and again
 *   load idle        opens N sessions (one message each), says so on stdout, holds them until stdin has a line or ends
 *   load storm       opens N sessions, cuts all of them at once, opens N again within --seconds, ends when all are open
 *
 * Before the window opens, --resting sessions are opened that stay open and silent, and --bulks that each, when the
 * window opens, have the backend push --bulk-bytes at them. The window then lasts until all of that has come, or, if they
 * read --slow bytes a second each, as long as --seconds. It is longer where fewer than LEAST units of work were done.
 *
 * Protocols: tcp (bytes are echoed), ws (RFC 6455), wss (TLS towards the proxy; the backend speaks plain ws).
 * The last line on stdout is a JSON object with the results. Any fault ends the run with a message and exit code 1:
 * a number that was measured across errors is worth nothing. So does five times --patience without any progress; a session
 * that has waited longer than --patience at the window's end is told as stuck. In a storm, a refusal is counted instead.
 *
 * This is one unit of translation; each header is one part of it:
 *   common.h  options, a connection, faults    parts.h   arithmetic of the protocol, latencies
 *   proc.h    what the kernel tells            conn.h    buffers, bytes in and out, frames    tls.h
 *   bulk.h    pushes                           client.h  backend.h
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif
#include "common.h"
#include "parts.h"
#include "proc.h"
#include "conn.h"
#include "bulk.h"
#include "client.h"
#include "backend.h"

/* The clients that exchange messages, and those that take a push, in the order of their turns. */
static struct conn **active, **bulk;
static int64_t window_start, window_end, proxy_cpu, load_cpu, load_waited, rest, schedule_start, bulk_end;
static long scheduled, slow_reads, stuck, base_kb, sockets_kb;

/* ---- one connection's turn -------------------------------------------------------------------------------------- */

static void serve(struct conn *c, uint32_t events)
{
    if (c->state == CONNECTING)
        client_connected(c);
#ifdef WITH_TLS
    if (c->state == TLS_HANDSHAKE) {
        if (tls_handshake(c))
            start_session(c);
        else if (c->state != DEAD)
            return;
    }
#endif
    if (c->state == PULLING) {
        pull(c, TURN_READ);
        want(c, EPOLLIN | (c->out_len ? EPOLLOUT : 0));
        return;
    }
    bool end = false;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        for (bool more = true; more && c->in_len < capacity && c->state != DEAD;) {
            ssize_t n = get(c, c->in + c->in_len, capacity - c->in_len);
            end = n < 0;
            more = n > 0 && c->ssl; /* what OpenSSL holds decrypted raises no event */
            if (n > 0) {
                c->in_len += (size_t)n;
                exchanged += c->role == CLIENT ? (size_t)n : 0;
                c->role == CLIENT ? client_data(c) : backend_data(c);
            }
        }
    if (c->state != DEAD)
        flush(c);
    if (c->in_len && c->role == BACKEND && c->state == READY) { /* the echo waited for room */
        backend_data(c);
        flush(c);
    }
    if (c->role == BACKEND && c->moved < c->total && !c->out_len && c->state != DEAD)
        push(c);
    if (c->role == CLIENT && (end || c->state == DEAD))
        client_end(c);
    else if (end || c->state == DEAD)
        destroy(c);
    else
        want(c, (c->in_len < capacity ? EPOLLIN : 0) |
                    (c->out_len || (c->role == BACKEND && c->moved < c->total) ? EPOLLOUT : 0));
}

/* ---- what is due at a time --------------------------------------------------------------------------------------- */

/* Messages at fixed times, the connections in turn. Who still waits for an echo sends late, and its time runs from when
 * the message was due: else a stall would hide all the messages that it held up. */
static void send_what_is_due(int64_t now)
{
    for (int64_t due; (due = schedule_start + (int64_t)((double)scheduled * 1e9 / opt.rate)) <= now; scheduled++) {
        struct conn *c = active[scheduled % opt.connections];
        if (c->busy) {
            c->owed++;
        } else {
            send_message(c, due);
            send_now(c);
        }
    }
}

/* Each slow reader reads once a second, and they take turns within it. */
static void read_slowly(int64_t now)
{
    for (; window_start + slow_reads * 1000000000LL / opt.bulks <= now; slow_reads++) {
        struct conn *c = bulk[slow_reads % opt.bulks];
        if (c->state == PULLING)
            pull(c, opt.slow);
        want(c, 0);
    }
}

/* Opens what the storm has due: evenly over --seconds, then those that were refused. */
static void storm_on(int64_t now)
{
    for (int64_t due; scheduled < opt.connections; scheduled++) {
        due = window_start + (int64_t)((double)scheduled * opt.seconds * 1e9 / opt.connections);
        if (due > now)
            return;
        new_client(ACTIVE, due);
    }
    if (again && now >= again_at) {
        long count = again;
        for (again = 0; count; count--)
            new_client(ACTIVE, now);
    }
}

/* ---- phases ----------------------------------------------------------------------------------------------------- */

static struct conn **clients_of(enum kind kind, int count)
{
    struct conn **list = calloc((size_t)count + 1, sizeof *list), **at = list;
    if (!list)
        fail("out of memory");
    for (struct conn *c = clients; c; c = c->next)
        if (c->kind == kind)
            *at++ = c;
    return list;
}

/* The sessions of the set-up are open: the work begins. */
static void begin(int64_t now)
{
    phase = WARM;
    phase_end = now + (int64_t)(opt.warm * 1e9);
    bulk = clients_of(BULK, opt.bulks);
    active = clients_of(ACTIVE, opt.connections);
    schedule_start = now;
    due_step = opt.rate ? (int64_t)(opt.connections * 1e9 / opt.rate) : 0;
    for (int i = 0; i < opt.connections && opt.mode != STORM; i++) {
        if (opt.mode == OPEN) {
            new_client(ACTIVE, now);
            continue;
        }
        active[i]->state = READY;
        if (!opt.rate) {
            send_message(active[i], now);
            send_now(active[i]);
        }
    }
}

static void open_window(int64_t now)
{
    phase = COUNT;
    phase_end = now + (int64_t)(opt.seconds * 1e9);
    handshakes = resumed = 0;
    if (opt.bulks && opt.pid_count) {
        forget_peak();
        base_kb = resident_kb();
    }
    rest = 0;
    exchanged = 0;
    load_waited = waited_ns();
    window_start = now_ns();
    load_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    proxy_cpu = cpu_of_pids();
    for (int i = 0; i < opt.bulks; i++) {
        ask_for_bulk(bulk[i]);
        if (opt.slow)
            want(bulk[i], 0);
    }
    if (opt.mode == STORM) {
        held = scheduled = 0;
        while (clients)
            destroy(clients);
    }
}

static void close_window(void)
{
    proxy_cpu = cpu_of_pids() - proxy_cpu;
    /* Polls that found nothing are rest, not work. */
    load_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - load_cpu - rest;
    window_end = now_ns();
    load_waited = waited_ns() - load_waited;
    sockets_kb = socket_kb();
    for (struct conn *c = clients; c; c = c->next)
        stuck += c->busy && (double)(window_end - c->since) > opt.patience * 1e9;
}

enum { LEAST = 20 };

static bool window_is_over(int64_t now)
{
    if (!bulk_end && opt.bulks && pulled == bulk_total(opt.bulk_bytes) * (size_t)opt.bulks)
        bulk_end = now;
    if (opt.mode == STORM)
        return held == opt.connections;
    if (counted < LEAST) /* the slow ones get the time that they need; that nothing moves at all is seen elsewhere */
        return false;
    if (opt.bulks && !opt.slow)
        return bulk_end;
    return now >= phase_end;
}

/* Round trips by the bytes that were moved both ways: unlike whole echoes, large messages are not cut by the window's ends. */
static double trips(void)
{
    uint8_t head[10];
    size_t heads = opt.protocol == TCP ? 0 : 2 * frame_head(TEXT, opt.size, head) + 4;
    return (double)exchanged / (double)(2 * opt.size + heads);
}

static void print_result(void)
{
#ifndef WITH_TLS
    const char *tls_facts = "";
#endif
    bool memory = opt.bulks && opt.pid_count;
    printf("{\"count\": %ld, \"trips\": %.2f, \"seconds\": %.6f, \"proxy_cpu_ns\": %lld, \"load_cpu_ns\": %lld, "
           "\"load_waited_ns\": %lld, \"opened\": %ld, "
           "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"stuck\": %ld, "
           "\"handshakes\": %ld, \"resumed\": %ld, \"refused\": %ld, \"bulk_bytes\": %zu, "
           "\"pushed_bytes\": %zu, \"bulk_seconds\": %.6f, "
           "\"base_kb\": %ld, \"peak_kb\": %ld, \"sockets_kb\": %ld, \"tls\": \"%s\"}\n",
           counted, trips(), (double)(window_end - window_start) / 1e9, (long long)proxy_cpu, (long long)load_cpu,
           (long long)load_waited, opened,
           percentile_us(.5), percentile_us(.9), percentile_us(.99), (double)slowest / 1000, stuck, handshakes,
           resumed, refused, pulled, pushed,
           bulk_end ? (double)(bulk_end - window_start) / 1e9 : 0, base_kb, memory ? peak_kb() : 0, sockets_kb, tls_facts);
    fflush(stdout);
}

/* Moves from phase to phase; true when the run is over. */
static bool tick(void)
{
    int64_t now = now_ns();
    if (phase != HOLD && (double)(now - last_progress) > 5 * opt.patience * 1e9)
        fail("nothing moved for %g s (%ld sessions were opened)", 5 * opt.patience, opened);
    if (phase == SETUP && held == setup_total && opt.mode == IDLE) {
        phase = HOLD;
        printf("{\"ready\": %ld}\n", held);
        fflush(stdout);
    } else if (phase == SETUP && held == setup_total) {
        begin(now);
    } else if (phase == WARM && now >= phase_end) {
        open_window(now);
    } else if (phase == COUNT && window_is_over(now)) {
        close_window();
        return true;
    }
    if (opt.rate && (phase == WARM || phase == COUNT))
        send_what_is_due(now);
    if (phase == COUNT && opt.slow)
        read_slowly(now);
    if (phase == COUNT && opt.mode == STORM)
        storm_on(now);
    return phase == CLOSE && !clients;
}

static void release_held(void)
{
    char line[64];
    ssize_t n = read(0, line, sizeof line);
    (void)n;
    if (phase != HOLD)
        fail("told to stop before all sessions were open");
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, 0, NULL);
    phase = CLOSE;
    last_progress = now_ns();
    for (struct conn *c = clients; c; c = c->next) {
        begin_close(c);
        send_now(c);
    }
}

static void run(void)
{
    static struct epoll_event events[256];
    last_progress = now_ns();
    for (int i = 0; i < setup_total && i < OPENERS; i++)
        new_client(kind_of(i), last_progress);
    while (!tick()) {
        /* While it counts it never sleeps: waking a sleeping CPU is work of the kernel's that would be charged to the
         * proxy whose bytes wake it, and the more so the longer that proxy lets the generator wait. With --sleep its CPU
         * is for the proxy, too. */
        bool spin = !opt.sleep && (phase == WARM || phase == COUNT);
        int64_t before = spin ? now_ns() : 0;
        int n = epoll_wait(epoll_fd, events, 256, spin ? 0 : 50);
        if (spin && !n)
            rest += now_ns() - before;
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == &listen_fd)
                backend_accept();
            else if (!events[i].data.ptr)
                release_held();
            else
                serve(events[i].data.ptr, events[i].events);
        }
    }
    print_result();
}

/* ---- start ------------------------------------------------------------------------------------------------------ */

static void listen_as_backend(void)
{
    int on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.backend_port)};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listen_fd};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listen_fd, (struct sockaddr *)&at, sizeof at) || listen(listen_fd, 4096))
        fail("backend port %d: %s", opt.backend_port, strerror(errno));
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event);
}

static int choice(const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (!strcmp(text, names[i]))
            return i;
    fail("unknown mode or protocol '%s'", text);
    return -1;
}

static void read_options(int argc, char **argv)
{
    static const char *const modes[] = {"roundtrip", "open", "idle", "storm", NULL};
    static const char *const protocols[] = {"tcp", "ws", "wss", NULL};
    static const struct option options[] = {
        {"protocol", 1, 0, 'p'}, {"connect", 1, 0, 'c'}, {"backend", 1, 0, 'b'}, {"connections", 1, 0, 'n'},
        {"size", 1, 0, 's'},     {"warm", 1, 0, 'w'},    {"seconds", 1, 0, 't'}, {"pids", 1, 0, 'P'},
        {"resume", 0, 0, 'r'},   {"rate", 1, 0, 'R'},    {"resting", 1, 0, 'i'}, {"bulks", 1, 0, 'B'},
        {"bulk-bytes", 1, 0, 'y'}, {"slow", 1, 0, 'l'},  {"patience", 1, 0, 'a'},
        {"sleep", 0, 0, 'z'},    {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (o) {
        case 'p': opt.protocol = (enum protocol)choice(optarg, protocols); break;
        case 'c': opt.connect_port = atoi(optarg); break;
        case 'b': opt.backend_port = atoi(optarg); break;
        case 'n': opt.connections = atoi(optarg); break;
        case 's': opt.size = (size_t)atol(optarg); break;
        case 'w': opt.warm = atof(optarg); break;
        case 't': opt.seconds = atof(optarg); break;
        case 'r': opt.resume = true; break;
        case 'z': opt.sleep = true; break;
        case 'R': opt.rate = atof(optarg); break;
        case 'i': opt.resting = atoi(optarg); break;
        case 'B': opt.bulks = atoi(optarg); break;
        case 'y': opt.bulk_bytes = (size_t)atol(optarg); break;
        case 'l': opt.slow = (size_t)atol(optarg); break;
        case 'a': opt.patience = atof(optarg); break;
        case 'P':
            for (char *p = strtok(optarg, ","); p && opt.pid_count < MAX_PIDS; p = strtok(NULL, ","))
                opt.pids[opt.pid_count++] = atoi(p);
            break;
        default: exit(2);
        }
    }
    if (optind != argc - 1 || !opt.connect_port || !opt.backend_port || opt.connections < 1 || !opt.size)
        fail("usage: load roundtrip|open|idle|storm --protocol tcp|ws|wss --connect PORT --backend PORT "
             "[--connections N] [--size BYTES] [--warm S] [--seconds S] [--pids PID,...] [--resume] "
             "[--rate MESSAGES/S] [--resting N] [--bulks N --bulk-bytes BYTES [--slow BYTES/S]] [--patience S] "
             "[--sleep]");
    opt.mode = (enum mode)choice(argv[optind], modes);
    if (opt.rate < 0 || opt.resting < 0 || opt.bulks < 0 || !opt.bulks != !opt.bulk_bytes || (opt.slow && !opt.bulks))
        fail("--rate and --resting cannot be below zero; --bulks and --bulk-bytes go together, --slow with them");
    if (opt.sleep && opt.rate)
        fail("--sleep is too coarse for --rate");
    if (opt.mode != ROUNDTRIP && (opt.rate || opt.bulks))
        fail("--rate and --bulks go with roundtrip only");
    setup_total = opt.resting + opt.bulks + (opt.mode == OPEN ? 0 : opt.connections);
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    capacity = opt.size + HEAD_ROOM;
    payload = malloc(opt.size);
    if (!payload)
        fail("out of memory");
    for (size_t i = 0; i < opt.size; i++)
        payload[i] = (uint8_t)"The quick brown fox jumps over the lazy dog. "[i % 45];
    make_block();
#ifdef WITH_TLS
    if (opt.protocol == WSS)
        tls_setup();
#else
    if (opt.protocol == WSS)
        fail("built without OpenSSL: no wss");
#endif
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    listen_as_backend();
    if (opt.mode == IDLE) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event))
            fail("idle needs a pipe or terminal on stdin");
    }
    run();
    return 0;
}
