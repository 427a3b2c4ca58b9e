/*
 * The backend: accepts, checks the opening handshake, echoes, and pushes what it is asked for.
 */
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
        static const uint8_t no_mask[4] = {0};
        if (c->in_len && !c->in[0]) { /* no message begins so */
            if (c->in_len >= 9) {
                start_push(c, c->in + 1, no_mask);
                consume(c, 9);
            }
            return;
        }
        size_t room = capacity - c->out_len, n = c->in_len < room ? c->in_len : room;
        append(c, c->in, n);
        consume(c, n);
        return;
    }
    while (!c->finish && next_frame(c, &f) && c->out_len + f.len + 14 <= capacity) {
        if (!f.masked)
            fail("the backend got a frame without a mask");
        if (f.opcode == BINARY && f.len == 8)
            start_push(c, c->in + f.head, f.mask);
        else if (f.opcode != PONG)
            send_frame(c, f.opcode == PING ? PONG : f.opcode, c->in + f.head, f.len, f.mask);
        c->finish = f.opcode == CLOSE_FRAME; /* the server closes TCP first (RFC 6455 7.1.1) */
        consume(c, f.head + f.len);
    }
}

