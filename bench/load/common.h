/*
 * What all parts of the load generator share: the options, a connection, the counters, faults and clocks.
 */
enum mode { ROUNDTRIP, OPEN, IDLE, STORM };
enum protocol { TCP, WS, WSS };
enum phase { SETUP, WARM, COUNT, HOLD, CLOSE };
enum role { CLIENT, BACKEND };

/* What a client is for: to exchange messages, to rest after one, to take what the backend pushes. */
enum kind { ACTIVE, RESTING, BULK };

/* The life of a connection; a backend connection begins at UPGRADE (ws) or READY (tcp). */
enum state { CONNECTING, TLS_HANDSHAKE, UPGRADE, READY, HELD, PULLING, CLOSING, DEAD };

enum { TEXT = 1, BINARY = 2, CLOSE_FRAME = 8, PING = 9, PONG = 10, HEAD_ROOM = 4096, MAX_PIDS = 64, OPENERS = 64 };

static struct {
    enum mode mode;
    enum protocol protocol;
    int connect_port, backend_port, connections, resting, bulks;
    size_t size, bulk_bytes, slow;
    double warm, seconds, rate, patience;
    bool resume, sleep;
    int pid_count;
    pid_t pids[MAX_PIDS];
} opt = {.connections = 100, .size = 125, .warm = 0.5, .seconds = 3, .patience = 2};

struct conn {
    int fd;
    enum role role;
    enum kind kind;
    enum state state;
    bool finish;      /* close once everything in `out` is sent */
    bool busy;        /* a message is on its way */
    int owed;         /* messages that were due while one was on its way */
    uint32_t interest;
    SSL *ssl;
    int64_t since;    /* ns: when the current unit of work began, or was due (a message; in open and storm the session) */
    char key[25];     /* Sec-WebSocket-Key of a client */
    size_t moved, total; /* bytes of a push that were sent or taken, and all of them */
    size_t in_len, out_off, out_len;
    uint8_t *in, *out;
    struct conn *next, *prev; /* all clients */
};

static int epoll_fd, listen_fd;
static enum phase phase = SETUP;
static size_t capacity;         /* of each connection's two buffers */
static uint8_t *payload;
static struct conn *clients;
static int client_count, started, setup_total;
static int64_t phase_end, last_progress;
static long opened, counted, resumed, handshakes, held, refused;
/* Bytes that backends pushed, that clients took of them; that clients sent and got besides, TLS not counted. */
static size_t pushed, pulled, exchanged;

static void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

/* In a storm a client may be refused: that is counted, and it tries again. Anywhere else it is a fault. */
static bool may_be_refused(const struct conn *c)
{
    return opt.mode == STORM && phase == COUNT && c->role == CLIENT;
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t))
        fail("clock: %s", strerror(errno));
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t random_bits(void) /* xorshift64: keys and masks only have to differ */
{
    static uint64_t x = 0;
    if (!x)
        x = (uint64_t)now_ns() | 1;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return x;
}
