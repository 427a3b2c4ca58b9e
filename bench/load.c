/*
 * load: the load generator of the benchmark.
 *
 * One process, one thread, one epoll loop that plays both ends: the clients, which connect to a proxy, and the
 * backend, to which the proxy connects. So all the work that is not the proxy's stays on one CPU, and whoever reads
 * the CPU clock of the proxy around a counted window reads the cost of the proxy alone.
 *
 *   load roundtrip   N connections, each sends a message, waits for its echo, sends the next
 *   load open        N at a time: connect, opening handshake, one message, closing handshake, and again
 *   load idle        opens N sessions (one message each), says so on stdout, holds them until stdin has a line or ends
 *
 * Protocols: tcp (bytes are echoed), ws (RFC 6455), wss (TLS towards the proxy; the backend speaks plain ws).
 * The last line on stdout is a JSON object with the results. Any fault ends the run with a message and exit code 1:
 * a number that was measured across errors is worth nothing.
 *
 * The CPU of the proxy is read here, from the kernel's CPU clock of each process named by --pids (user and system time of
 * all its threads, in nanoseconds: clock_getcpuclockid), in the same loop turn as the counters.
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
#include "load_parts.h"

enum mode { ROUNDTRIP, OPEN, IDLE };
enum protocol { TCP, WS, WSS };
enum phase { SETUP, WARM, COUNT, HOLD, CLOSE };
enum role { CLIENT, BACKEND };

/* The life of a connection; a backend connection begins at UPGRADE (ws) or READY (tcp). */
enum state { CONNECTING, TLS_HANDSHAKE, UPGRADE, READY, HELD, CLOSING, DEAD };

enum { TEXT = 1, CLOSE_FRAME = 8, PING = 9, PONG = 10, HEAD_ROOM = 4096, MAX_PIDS = 64, IDLE_OPENERS = 64 };

static struct {
    enum mode mode;
    enum protocol protocol;
    int connect_port, backend_port, connections;
    size_t size;
    double warm, seconds;
    bool resume;
    int pid_count;
    pid_t pids[MAX_PIDS];
} opt = {.connections = 100, .size = 125, .warm = 0.5, .seconds = 3};

struct conn {
    int fd;
    enum role role;
    enum state state;
    bool finish;      /* close once everything in `out` is sent */
    uint32_t interest;
    SSL *ssl;
    int64_t since;    /* ns: when the current unit of work began (a message, or the whole session in mode open) */
    char key[25];     /* Sec-WebSocket-Key of a client */
    size_t in_len, out_off, out_len;
    uint8_t *in, *out;
    struct conn *next, *prev; /* all clients */
};

static int epoll_fd, listen_fd;
static enum phase phase = SETUP;
static size_t capacity;         /* of each connection's two buffers */
static uint8_t *payload;
static struct conn *clients;
static int client_count;
static int64_t phase_end, last_progress;
static long opened, counted, resumed, handshakes, stuck, held;
static int64_t window_start, window_end, proxy_cpu, load_cpu, rest;

static void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

/* ---- clocks --------------------------------------------------------------------------------------------------- */

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

static uint64_t random_bits(void) /* xorshift64: keys and masks only have to differ */
{
    static uint64_t x = 0;
    if (!x)
        x = (uint64_t)now_ns() | 1;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    return x;
}

/* ---- connections ---------------------------------------------------------------------------------------------- */

static void serve(struct conn *c, uint32_t events);
static void flush(struct conn *c);
static void new_client(void);

static void want(struct conn *c, uint32_t interest)
{
    if (interest == c->interest)
        return;
    struct epoll_event event = {.events = interest, .data.ptr = c};
    if (epoll_ctl(epoll_fd, c->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event))
        fail("epoll_ctl: %s", strerror(errno));
    c->interest = interest;
}

static struct conn *new_conn(int fd, enum role role, enum state state)
{
    struct conn *c = calloc(1, sizeof *c);
    int on = 1;
    if (!c || !(c->in = malloc(capacity)) || !(c->out = malloc(capacity)))
        fail("out of memory");
    c->fd = fd, c->role = role, c->state = state;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return c;
}

/* Only ever called while this connection is being served, so no event of the same batch can still name it. */
static void destroy(struct conn *c)
{
#ifdef WITH_TLS
    if (c->ssl) {
        SSL_shutdown(c->ssl); /* quiet: sends nothing, but leaves the session fit for resumption */
        SSL_free(c->ssl);
    }
#endif
    close(c->fd);
    if (c->role == CLIENT) {
        if (c->next)
            c->next->prev = c->prev;
        if (c->prev)
            c->prev->next = c->next;
        else
            clients = c->next;
        client_count--;
    }
    free(c->in);
    free(c->out);
    free(c);
}

static void append(struct conn *c, const void *data, size_t len)
{
    if (c->out_len + len > capacity)
        fail("a send buffer of %zu bytes is full", capacity);
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
}

#ifdef WITH_TLS
#include "load_tls.h"
#endif

/* Bytes moved, 0 when it would block, -1 at the end of the stream. */
static ssize_t get(struct conn *c, uint8_t *data, size_t room)
{
#ifdef WITH_TLS
    if (c->ssl) {
        int n = SSL_read(c->ssl, data, (int)room);
        if (n > 0)
            return n;
        int kind = SSL_get_error(c->ssl, n);
        if (kind == SSL_ERROR_WANT_READ)
            return 0;
        if (kind == SSL_ERROR_ZERO_RETURN || c->state == CLOSING) {
            ERR_clear_error();
            return -1;
        }
        tls_fail(c, n, "read");
    }
#endif
    ssize_t n = recv(c->fd, data, room, 0);
    if (n > 0)
        return n;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n < 0 && c->role == CLIENT && c->state != CLOSING)
        fail("client read: %s", strerror(errno));
    return -1;
}

static ssize_t put(struct conn *c, const uint8_t *data, size_t len)
{
#ifdef WITH_TLS
    if (c->ssl) {
        int n = SSL_write(c->ssl, data, (int)len);
        if (n > 0)
            return n;
        int kind = SSL_get_error(c->ssl, n);
        if (kind != SSL_ERROR_WANT_WRITE && kind != SSL_ERROR_WANT_READ)
            tls_fail(c, n, "write");
        return 0;
    }
#endif
    ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
    if (n >= 0)
        return n;
    if (errno == EAGAIN || errno == EINTR)
        return 0;
    if (c->role == CLIENT)
        fail("client write: %s", strerror(errno));
    return -1;
}

/* ---- frames (RFC 6455 5.2) -------------------------------------------------------------------------------------- */

/* True when a whole frame lies at the start of the input. */
static bool next_frame(struct conn *c, struct frame *f)
{
    enum frame_state state = read_frame(c->in, c->in_len, opt.size > 125 ? opt.size : 125, f);
    if (state == FRAME_BAD)
        fail("the %s got a frame that nobody sent: %02x %02x", c->role == CLIENT ? "client" : "backend", c->in[0], c->in[1]);
    return state == FRAME_WHOLE;
}

/* Clients mask, the backend does not (RFC 6455 5.1). `mask` is the one over `data`, or NULL. */
static void send_frame(struct conn *c, int opcode, const uint8_t *data, size_t len, const uint8_t *mask)
{
    uint8_t head[14], plain[4] = {0}, *at;
    size_t n = 2;
    head[0] = (uint8_t)(0x80 | opcode);
    head[1] = (uint8_t)(len < 126 ? len : len < 65536 ? 126 : 127);
    if (len >= 126)
        for (int bytes = len < 65536 ? 2 : 8; bytes-- > 0;)
            head[n++] = (uint8_t)((uint64_t)len >> bytes * 8);
    if (c->role == CLIENT) {
        uint32_t bits = (uint32_t)random_bits();
        head[1] |= 0x80;
        memcpy(head + n, &bits, 4);
        memcpy(plain, &bits, 4);
        n += 4;
    }
    if (mask)
        for (int i = 0; i < 4; i++)
            plain[i] ^= mask[i];
    append(c, head, n);
    at = c->out + c->out_len;
    append(c, data, len);
    if (c->role == CLIENT || mask)
        xor_mask(at, at, len, plain);
}

/* ---- the client ------------------------------------------------------------------------------------------------- */

static void send_message(struct conn *c)
{
    if (opt.mode != OPEN)
        c->since = now_ns();
    if (opt.protocol == TCP)
        append(c, payload, opt.size);
    else
        send_frame(c, TEXT, payload, opt.size, NULL);
}

static void begin_close(struct conn *c)
{
    static const uint8_t normal[2] = {1000 >> 8, 1000 & 255};
    c->state = CLOSING;
    if (opt.protocol == TCP)
        shutdown(c->fd, SHUT_WR);
    else
        send_frame(c, CLOSE_FRAME, normal, 2, NULL);
}

/* The head that a browser sends: the proxy has to read all of it. */
static void send_request(struct conn *c)
{
    char head[2048];
    uint64_t nonce[2] = {random_bits(), random_bits()};
    base64((uint8_t *)nonce, 16, c->key);
    int len = snprintf(head, sizeof head,
                       "GET /chat/room?id=4711&v=2 HTTP/1.1\r\n"
                       "Host: bench.test\r\n"
                       "Connection: Upgrade\r\n"
                       "Pragma: no-cache\r\n"
                       "Cache-Control: no-cache\r\n"
                       "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
                       "Chrome/140.0.0.0 Safari/537.36\r\n"
                       "Upgrade: websocket\r\n"
                       "Origin: %s://bench.test\r\n"
                       "Sec-WebSocket-Version: 13\r\n"
                       "Accept-Encoding: gzip, deflate, br, zstd\r\n"
                       "Accept-Language: en-GB,en-US;q=0.9,en;q=0.8\r\n"
                       "Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes\r\n"
                       "Sec-WebSocket-Key: %s\r\n"
                       "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
                       opt.protocol == WSS ? "https" : "http", c->key);
    append(c, head, (size_t)len);
    c->state = UPGRADE;
}

static void session_ready(struct conn *c)
{
    c->state = READY;
    opened++;
    last_progress = now_ns();
    send_message(c);
}

static void start_session(struct conn *c)
{
    if (opt.protocol == TCP)
        session_ready(c);
    else
        send_request(c);
}

/* Length of the head at the start of the input, made a C string in place; 0 when it is not whole yet. */
static size_t whole_head(struct conn *c)
{
    uint8_t *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (!end) {
        if (c->in_len == capacity)
            fail("a head longer than %zu bytes", capacity);
        return 0;
    }
    end[3] = 0; /* the last LF; nothing reads it again */
    return (size_t)(end - c->in) + 4;
}

static void consume(struct conn *c, size_t len)
{
    c->in_len -= len;
    if (c->in_len)
        memmove(c->in, c->in + len, c->in_len);
}

static void client_upgrade(struct conn *c)
{
    size_t len = whole_head(c);
    char expected[29];
    if (!len)
        return;
    const char *head = (char *)c->in, *value = header(head, "sec-websocket-accept:");
    if (strncmp(head, "HTTP/1.1 101", 12))
        fail("the handshake was refused: %.*s", (int)strcspn(head, "\r"), head);
    accept_for(c->key, expected);
    if (!value || strncmp(value, expected, 28))
        fail("a wrong Sec-WebSocket-Accept");
    consume(c, len);
    session_ready(c);
}

/* The echo of the whole message is there. */
static void client_echo(struct conn *c)
{
    int64_t now = now_ns();
    last_progress = now;
    if (opt.mode == ROUNDTRIP) {
        if (phase == COUNT) {
            counted++;
            record(now - c->since);
        }
        send_message(c);
    } else if (opt.mode == OPEN) {
        begin_close(c);
    } else {
        c->state = HELD;
        held++;
        if (client_count < opt.connections)
            new_client();
    }
}

static void client_data(struct conn *c)
{
    struct frame f;
    if (c->state == UPGRADE)
        client_upgrade(c);
    if (c->state == UPGRADE)
        return;
    if (opt.protocol == TCP) {
        if (c->in_len < opt.size)
            return;
        if (c->in_len > opt.size || c->state != READY || memcmp(c->in, payload, opt.size))
            fail("what came back is not what was sent");
        c->in_len = 0;
        client_echo(c);
        return;
    }
    while (next_frame(c, &f)) {
        const uint8_t *data = c->in + f.head;
        size_t whole = f.head + f.len;
        if (f.masked)
            fail("a masked frame from the server");
        if (f.opcode == PING) {
            send_frame(c, PONG, data, f.len, NULL);
            consume(c, whole);
        } else if (f.opcode == CLOSE_FRAME) {
            if (c->state != CLOSING)
                fail("the server closed with code %d", f.len >= 2 ? data[0] << 8 | data[1] : 1005);
            consume(c, whole);
        } else {
            if (f.opcode != TEXT || f.len != opt.size || c->state != READY || memcmp(data, payload, f.len))
                fail("what came back is not what was sent");
            consume(c, whole);
            client_echo(c);
        }
    }
}

static void client_end(struct conn *c)
{
    if (c->state != CLOSING)
        fail("the proxy closed a session in state %d", c->state);
    int64_t now = now_ns(), since = c->since;
    destroy(c);
    last_progress = now;
    if (opt.mode != OPEN)
        return;
    if (phase == COUNT) {
        counted++;
        record(now - since);
    }
    new_client();
}

/* Source addresses rotate over 127.0.0.2-17, so that a fast run does not use up the ports of one address. */
static void new_client(void)
{
    static unsigned turn;
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    from.sin_addr.s_addr = htonl(0x7F000002 + turn++ % 16);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)opt.connect_port);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    struct conn *c = new_conn(fd, CLIENT, CONNECTING);
    c->since = now_ns();
    c->next = clients;
    if (clients)
        clients->prev = c;
    clients = c;
    client_count++;
    if (bind(fd, (struct sockaddr *)&from, sizeof from) ||
        (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS))
        fail("connect: %s", strerror(errno));
    want(c, EPOLLOUT);
}

static void client_connected(struct conn *c)
{
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error)
        fail("connect: %s", strerror(error));
    if (opt.protocol == WSS)
        c->state = TLS_HANDSHAKE;
    else
        start_session(c);
}

/* ---- the backend ------------------------------------------------------------------------------------------------ */

static void backend_accept(void)
{
    int fd;
    while ((fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
        want(new_conn(fd, BACKEND, opt.protocol == TCP ? READY : UPGRADE), EPOLLIN);
    if (errno != EAGAIN && errno != ECONNABORTED)
        fail("accept: %s", strerror(errno));
}

static void backend_upgrade(struct conn *c)
{
    size_t len = whole_head(c);
    char answer[256], accept[29];
    if (!len)
        return;
    const char *key = header((char *)c->in, "sec-websocket-key:");
    if (!key || strcspn(key, " \r") != 24)
        fail("the backend got a request without a Sec-WebSocket-Key");
    accept_for(key, accept);
    append(c, answer, (size_t)snprintf(answer, sizeof answer,
                                       "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                       "Sec-WebSocket-Accept: %s\r\n\r\n", accept));
    consume(c, len);
    c->state = READY;
}

static void backend_data(struct conn *c)
{
    struct frame f;
    if (c->state == UPGRADE)
        backend_upgrade(c);
    if (c->state == UPGRADE)
        return;
    if (opt.protocol == TCP) {
        size_t room = capacity - c->out_len, n = c->in_len < room ? c->in_len : room;
        append(c, c->in, n);
        consume(c, n);
        return;
    }
    while (!c->finish && next_frame(c, &f) && c->out_len + f.len + 14 <= capacity) {
        if (!f.masked)
            fail("the backend got a frame without a mask");
        if (f.opcode != PONG)
            send_frame(c, f.opcode == PING ? PONG : f.opcode, c->in + f.head, f.len, f.mask);
        c->finish = f.opcode == CLOSE_FRAME; /* the server closes TCP first (RFC 6455 7.1.1) */
        consume(c, f.head + f.len);
    }
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static void flush(struct conn *c)
{
    while (c->out_off < c->out_len) {
        ssize_t n = put(c, c->out + c->out_off, c->out_len - c->out_off);
        if (n < 0) {
            c->state = DEAD;
            return;
        }
        if (!n)
            break;
        c->out_off += (size_t)n;
    }
    if (c->out_off == c->out_len) {
        c->out_off = c->out_len = 0;
        if (c->finish)
            c->state = DEAD;
    } else if (c->out_off) {
        memmove(c->out, c->out + c->out_off, c->out_len - c->out_off);
        c->out_len -= c->out_off;
        c->out_off = 0;
    }
}

static void serve(struct conn *c, uint32_t events)
{
    if (c->state == CONNECTING)
        client_connected(c);
#ifdef WITH_TLS
    if (c->state == TLS_HANDSHAKE) {
        if (!tls_handshake(c))
            return;
        start_session(c);
    }
#endif
    bool end = false;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        for (bool more = true; more && c->in_len < capacity;) {
            ssize_t n = get(c, c->in + c->in_len, capacity - c->in_len);
            end = n < 0;
            more = n > 0 && c->ssl; /* what OpenSSL holds decrypted raises no event */
            if (n > 0) {
                c->in_len += (size_t)n;
                c->role == CLIENT ? client_data(c) : backend_data(c);
            }
        }
    flush(c);
    if (c->in_len && c->role == BACKEND && c->state == READY) { /* the echo waited for room */
        backend_data(c);
        flush(c);
    }
    if (end && c->role == CLIENT)
        client_end(c);
    else if (end || c->state == DEAD)
        destroy(c);
    else
        want(c, (c->in_len < capacity ? EPOLLIN : 0) | (c->out_len ? EPOLLOUT : 0));
}

static void open_window(int64_t now)
{
    phase = COUNT;
    phase_end = now + (int64_t)(opt.seconds * 1e9);
    handshakes = resumed = 0;
    rest = 0;
    window_start = now_ns();
    load_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    proxy_cpu = cpu_of_pids();
}

static void close_window(void)
{
    proxy_cpu = cpu_of_pids() - proxy_cpu;
    /* Polls that found nothing are rest, not work. */
    load_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - load_cpu - rest;
    window_end = now_ns();
    for (struct conn *c = clients; c; c = c->next)
        stuck += window_end - c->since > 2000000000;
}

static void print_result(void)
{
#ifndef WITH_TLS
    const char *tls_facts = "";
#endif
    printf("{\"count\": %ld, \"seconds\": %.6f, \"proxy_cpu_ns\": %lld, \"load_cpu_ns\": %lld, \"opened\": %ld, "
           "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"stuck\": %ld, "
           "\"handshakes\": %ld, \"resumed\": %ld, \"tls\": \"%s\"}\n",
           counted, (double)(window_end - window_start) / 1e9, (long long)proxy_cpu, (long long)load_cpu, opened,
           percentile_us(.5), percentile_us(.9), percentile_us(.99), (double)slowest / 1000, stuck,
           handshakes, resumed, tls_facts);
    fflush(stdout);
}

/* Moves from phase to phase; true when the run is over. */
static bool tick(void)
{
    int64_t now = now_ns();
    if (phase != HOLD && now - last_progress > 10000000000)
        fail("nothing moved for 10 s (%ld sessions were opened)", opened);
    if (phase == SETUP && opt.mode == IDLE && held == opt.connections) {
        phase = HOLD;
        printf("{\"ready\": %ld}\n", held);
        fflush(stdout);
    } else if (phase == SETUP && (opt.mode == OPEN || (opt.mode == ROUNDTRIP && opened == opt.connections))) {
        phase = WARM;
        phase_end = now + (int64_t)(opt.warm * 1e9);
    } else if (phase == WARM && now >= phase_end) {
        open_window(now);
    } else if (phase == COUNT && now >= phase_end) {
        close_window();
        return true;
    }
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
        flush(c);
        want(c, EPOLLIN | (c->out_len ? EPOLLOUT : 0));
    }
}

static void run(void)
{
    static struct epoll_event events[256];
    int first = opt.mode == IDLE && opt.connections > IDLE_OPENERS ? IDLE_OPENERS : opt.connections;
    last_progress = now_ns();
    for (int i = 0; i < first; i++)
        new_client();
    while (!tick()) {
        /* While it counts it never sleeps: waking a sleeping CPU is work of the kernel's that would be charged to the
         * proxy whose bytes wake it, and the more so the longer that proxy lets the generator wait. */
        bool spin = phase == WARM || phase == COUNT;
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
    static const char *const modes[] = {"roundtrip", "open", "idle", NULL};
    static const char *const protocols[] = {"tcp", "ws", "wss", NULL};
    static const struct option options[] = {
        {"protocol", 1, 0, 'p'}, {"connect", 1, 0, 'c'}, {"backend", 1, 0, 'b'}, {"connections", 1, 0, 'n'},
        {"size", 1, 0, 's'},     {"warm", 1, 0, 'w'},    {"seconds", 1, 0, 't'}, {"pids", 1, 0, 'P'},
        {"resume", 0, 0, 'r'},   {0, 0, 0, 0}};
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
        case 'P':
            for (char *p = strtok(optarg, ","); p && opt.pid_count < MAX_PIDS; p = strtok(NULL, ","))
                opt.pids[opt.pid_count++] = atoi(p);
            break;
        default: exit(2);
        }
    }
    if (optind != argc - 1 || !opt.connect_port || !opt.backend_port || opt.connections < 1 || !opt.size)
        fail("usage: load roundtrip|open|idle --protocol tcp|ws|wss --connect PORT --backend PORT [--connections N] "
             "[--size BYTES] [--warm S] [--seconds S] [--pids PID,...] [--resume]");
    opt.mode = (enum mode)choice(argv[optind], modes);
}

int main(int argc, char **argv)
{
    read_options(argc, argv);
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    capacity = opt.size + HEAD_ROOM;
    payload = malloc(opt.size);
    for (size_t i = 0; i < opt.size; i++)
        payload[i] = (uint8_t)"The quick brown fox jumps over the lazy dog. "[i % 45];
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
