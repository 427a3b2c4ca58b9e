/*
 * Bulk: a client asks, the backend pushes the same block over and over, and the client compares each byte that comes.
 * Over ws a block is one frame. The request is eight bytes that hold the length; over TCP, where the backend cannot tell
 * it from a message by its opcode, a zero byte goes before.
 */
enum { BLOCK = 65536, TURN_BLOCKS = 4, TURN_READ = 262144 };

static uint8_t block[BLOCK + 14];
static size_t block_len;

static void make_block(void)
{
    block_len = opt.protocol == TCP ? 0 : frame_head(BINARY, BLOCK, block);
    for (size_t i = 0; i < BLOCK; i++)
        block[block_len + i] = payload[i % opt.size];
    block_len += BLOCK;
}

/* What is pushed for a request: whole blocks. */
static size_t bulk_total(size_t bytes)
{
    return (bytes + BLOCK - 1) / BLOCK * block_len;
}

static void ask_for_bulk(struct conn *c)
{
    uint8_t request[9] = {0};
    for (int i = 0; i < 8; i++)
        request[1 + i] = (uint8_t)((uint64_t)opt.bulk_bytes >> (7 - i) * 8);
    if (opt.protocol == TCP)
        append(c, request, 9);
    else
        send_frame(c, BINARY, request + 1, 8, NULL);
    c->state = PULLING;
    c->total = bulk_total(opt.bulk_bytes);
    send_now(c);
}

static void start_push(struct conn *c, const uint8_t *request, const uint8_t mask[4])
{
    uint64_t bytes = 0;
    for (int i = 0; i < 8; i++)
        bytes = bytes << 8 | (uint8_t)(request[i] ^ mask[i & 3]);
    int little = 65536;
    if (opt.slow) /* else megabytes would lie in the backend's socket, and the proxy would feel no pressure */
        setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
    c->moved = 0;
    c->total = bulk_total(bytes);
}

/* A few blocks each turn, so that the others get theirs. */
static void push(struct conn *c)
{
    for (int turns = 0; c->moved < c->total && turns < TURN_BLOCKS; turns++) {
        size_t at = c->moved % block_len;
        ssize_t n = put(c, block + at, block_len - at);
        if (n < 0)
            c->state = DEAD;
        if (n <= 0)
            return;
        c->moved += (size_t)n;
        pushed += (size_t)n;
    }
}

static void take(struct conn *c, const uint8_t *data, size_t len)
{
    while (len) {
        size_t at = c->moved % block_len, n = len < block_len - at ? len : block_len - at;
        if (c->moved + n > c->total || memcmp(data, block + at, n))
            fail("what came is not what the backend pushed");
        c->moved += n, pulled += n, data += n, len -= n;
    }
    last_progress = now_ns();
}

/* What OpenSSL holds decrypted, which raises no event. */
static bool more_inside(const struct conn *c)
{
#ifdef WITH_TLS
    return c->ssl && SSL_pending(c->ssl);
#else
    return c->ssl;
#endif
}

/* Reads up to `room` bytes of what is pushed; who reads fast takes the rest of a TLS record, too. */
static void pull(struct conn *c, size_t room)
{
    static uint8_t data[TURN_READ];
    flush(c);
    while (room || (!opt.slow && more_inside(c))) {
        ssize_t n = get(c, data, room && room < sizeof data ? room : sizeof data);
        if (n < 0)
            fail("a session ended after %zu of %zu pushed bytes", c->moved, c->total);
        if (!n)
            break;
        take(c, data, (size_t)n);
        room -= (size_t)n < room ? (size_t)n : room;
    }
    if (c->moved == c->total)
        c->state = HELD;
}
