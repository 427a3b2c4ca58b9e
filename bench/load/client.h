/*
 * The clients: connect, opening handshake, messages, closing handshake.
 */
static int64_t due_step; /* ns between two messages of one connection, with --rate */

static void new_client(enum kind kind, int64_t since);

static void send_message(struct conn *c, int64_t since)
{
    c->busy = true;
    if (opt.mode == ROUNDTRIP)
        c->since = since;
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
    int64_t now = now_ns();
    c->state = READY;
    opened++;
    last_progress = now;
    send_message(c, now);
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

static void client_upgrade(struct conn *c)
{
    size_t len = whole_head(c);
    char expected[29];
    if (!len)
        return;
    const char *head = (char *)c->in, *value = header(head, "sec-websocket-accept:");
    if (strncmp(head, "HTTP/1.1 101", 12)) {
        if (!may_be_refused(c))
            fail("the handshake was refused: %.*s", (int)strcspn(head, "\r"), head);
        c->state = DEAD;
        return;
    }
    accept_for(c->key, expected);
    if (!value || strncmp(value, expected, 28))
        fail("a wrong Sec-WebSocket-Accept");
    consume(c, len);
    session_ready(c);
}

/* In which order the sessions of the set-up are opened. */
static enum kind kind_of(int number)
{
    return number < opt.resting ? RESTING : number < opt.resting + opt.bulks ? BULK : ACTIVE;
}

/* The session is open, as its first echo shows; it waits for what comes. The next one may open. */
static void hold(struct conn *c)
{
    c->state = HELD;
    held++;
    if (phase == SETUP && started < setup_total)
        new_client(kind_of(started), now_ns());
}

/* The echo of the whole message is there. */
static void client_echo(struct conn *c)
{
    int64_t now = now_ns();
    last_progress = now;
    c->busy = false;
    if (phase == SETUP || opt.mode == STORM) {
        if (phase == COUNT) {
            counted++;
            record(now - c->since);
        }
        hold(c);
    } else if (opt.mode == OPEN) {
        begin_close(c);
    } else {
        if (phase == COUNT) {
            counted++;
            record(now - c->since);
        }
        if (!opt.rate)
            send_message(c, now);
        else if (c->owed) {
            c->owed--;
            send_message(c, c->since + due_step);
        }
    }
}

static void client_data(struct conn *c)
{
    struct frame f;
    if (c->state == UPGRADE)
        client_upgrade(c);
    if (c->state == UPGRADE || c->state == DEAD)
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

/* A refused client of a storm comes again: all of them together, REFUSED_AGAIN later than the last of them. */
static long again;
static int64_t again_at;
enum { REFUSED_AGAIN = 100000000 };

static void lose(struct conn *c)
{
    destroy(c);
    refused++;
    again++;
    again_at = now_ns() + REFUSED_AGAIN;
}

static void client_end(struct conn *c)
{
    if (may_be_refused(c)) {
        if (c->state == HELD)
            fail("the proxy closed a session that was open again");
        lose(c);
        return;
    }
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
    new_client(ACTIVE, now);
}

/* Source addresses rotate over 127.0.0.2-17, so that a fast run does not use up the ports of one address. */
static void new_client(enum kind kind, int64_t since)
{
    static unsigned turn;
    int on = 1, little = 8192, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET};
    if (fd < 0)
        fail("socket: %s", strerror(errno));
    from.sin_addr.s_addr = htonl(0x7F000002 + turn++ % 16);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)opt.connect_port);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (kind == BULK && opt.slow) /* else the kernel would take megabytes on behalf of who reads slowly */
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &little, sizeof little);
    struct conn *c = new_conn(fd, CLIENT, CONNECTING);
    c->kind = kind;
    c->since = since;
    c->next = clients;
    if (clients)
        clients->prev = c;
    clients = c;
    client_count++;
    started++;
    if (bind(fd, (struct sockaddr *)&from, sizeof from))
        fail("bind: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
        if (!may_be_refused(c))
            fail("connect: %s", strerror(errno));
        lose(c);
        return;
    }
    want(c, EPOLLOUT);
}

static void client_connected(struct conn *c)
{
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error) {
        if (!may_be_refused(c))
            fail("connect: %s", strerror(error));
        c->state = DEAD;
    } else if (opt.protocol == WSS)
        c->state = TLS_HANDSHAKE;
    else
        start_session(c);
}
