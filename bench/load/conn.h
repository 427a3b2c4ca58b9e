/*
 * Connections: their interest, their buffers, bytes in and out by socket or TLS, whole frames.
 */
static void serve(struct conn *c, uint32_t events);

static void want(struct conn *c, uint32_t interest)
{
    if (interest == c->interest)
        return;
    struct epoll_event event = {.events = interest, .data.ptr = c};
    /* Without interest it leaves the epoll set: the kernel would go on reporting errors and ends. */
    if (epoll_ctl(epoll_fd, !interest ? EPOLL_CTL_DEL : c->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event))
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

/* Only ever called while this connection is being served, or between batches: no event can still name it. */
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

static void consume(struct conn *c, size_t len)
{
    c->in_len -= len;
    if (c->in_len)
        memmove(c->in, c->in + len, c->in_len);
}

#ifdef WITH_TLS
#include "tls.h"
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
        if (kind == SSL_ERROR_ZERO_RETURN || c->state == CLOSING || may_be_refused(c)) {
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
    if (n < 0 && c->role == CLIENT && c->state != CLOSING && !may_be_refused(c))
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
        if (kind == SSL_ERROR_WANT_WRITE || kind == SSL_ERROR_WANT_READ)
            return 0;
        if (!may_be_refused(c))
            tls_fail(c, n, "write");
        ERR_clear_error();
        return -1;
    }
#endif
    ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
    if (n >= 0)
        return n;
    if (errno == EAGAIN || errno == EINTR)
        return 0;
    if (c->role == CLIENT && !may_be_refused(c))
        fail("client write: %s", strerror(errno));
    return -1;
}

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
        exchanged += c->role == CLIENT ? (size_t)n : 0;
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

/* Sends what was put in from outside its own events. */
static void send_now(struct conn *c)
{
    flush(c);
    want(c, EPOLLIN | (c->out_len ? EPOLLOUT : 0));
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
    size_t n = frame_head(opcode, len, head);
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
