/*
 * The parts of the load generator that know neither sockets nor connections: the arithmetic of the WebSocket
 * protocol (RFC 6455), and the histogram of latencies.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* ---- SHA-1 (RFC 3174) and base64, for Sec-WebSocket-Accept (RFC 6455 4.2.2) ------------------------------------- */

static uint32_t rol(uint32_t x, int n)
{
    return x << n | x >> (32 - n);
}

static void sha1(const uint8_t *data, size_t len, uint8_t digest[20]) /* up to 119 bytes: two blocks */
{
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t block[128] = {0};
    size_t blocks = len < 56 ? 1 : 2;
    memcpy(block, data, len);
    block[len] = 0x80;
    block[blocks * 64 - 2] = (uint8_t)(len * 8 >> 8);
    block[blocks * 64 - 1] = (uint8_t)(len * 8);
    for (const uint8_t *p = block; p < block + blocks * 64; p += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            if (i < 16)
                w[i] = (uint32_t)p[i * 4] << 24 | p[i * 4 + 1] << 16 | p[i * 4 + 2] << 8 | p[i * 4 + 3];
            else
                w[i] = rol(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
            uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                         : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                         : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                                  : (b ^ c ^ d) + 0xCA62C1D6;
            uint32_t t = rol(a, 5) + f + e + w[i];
            e = d, d = c, c = rol(b, 30), b = a, a = t;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++)
        digest[i] = (uint8_t)(h[i / 4] >> (24 - i % 4 * 8));
}

static void base64(const uint8_t *data, size_t len, char *text)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < len; i += 3) {
        size_t left = len - i;
        uint32_t v = (uint32_t)data[i] << 16 | (left > 1 ? data[i + 1] << 8 : 0) | (left > 2 ? data[i + 2] : 0);
        *text++ = digits[v >> 18];
        *text++ = digits[v >> 12 & 63];
        *text++ = left > 1 ? digits[v >> 6 & 63] : '=';
        *text++ = left > 2 ? digits[v & 63] : '=';
    }
    *text = 0;
}

static void accept_for(const char *key, char text[29])
{
    char joined[64];
    uint8_t digest[20];
    int len = snprintf(joined, sizeof joined, "%.24s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
    sha1((uint8_t *)joined, (size_t)len, digest);
    base64(digest, 20, text);
}

/* The value of a header in a head that ends in an empty line, or NULL; `name` ends in a colon. */
static const char *header(const char *head, const char *name)
{
    for (const char *line = strstr(head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, strlen(name)))
            return line + 2 + strlen(name) + strspn(line + 2 + strlen(name), " \t");
    return NULL;
}

/* ---- frames (RFC 6455 5.2) -------------------------------------------------------------------------------------- */

struct frame {
    int opcode;
    bool masked;
    size_t head, len; /* bytes of the header, bytes of the payload */
    uint8_t mask[4];
};

enum frame_state { FRAME_PART, FRAME_WHOLE, FRAME_BAD };

/* Bad is what nobody sent here: a fragment, an extension's bit, more than `longest` bytes. */
static enum frame_state read_frame(const uint8_t *data, size_t have, size_t longest, struct frame *f)
{
    if (have < 2)
        return FRAME_PART;
    f->opcode = data[0] & 15;
    f->masked = data[1] & 0x80;
    f->len = data[1] & 127;
    f->head = 2 + (f->len == 126 ? 2 : f->len == 127 ? 8 : 0) + (f->masked ? 4 : 0);
    if ((data[0] & 0xF0) != 0x80)
        return FRAME_BAD;
    if (have < f->head)
        return FRAME_PART;
    if (f->len >= 126) {
        int bytes = f->len == 126 ? 2 : 8;
        f->len = 0;
        for (int i = 0; i < bytes; i++)
            f->len = f->len << 8 | data[2 + i];
    }
    if (f->len > longest)
        return FRAME_BAD;
    if (f->masked)
        memcpy(f->mask, data + f->head - 4, 4);
    return have >= f->head + f->len ? FRAME_WHOLE : FRAME_PART;
}

/* Writes the header of an unmasked frame that is a whole message; returns its length, 10 at most. */
static size_t frame_head(int opcode, size_t len, uint8_t *head)
{
    size_t n = 2;
    head[0] = (uint8_t)(0x80 | opcode);
    head[1] = (uint8_t)(len < 126 ? len : len < 65536 ? 126 : 127);
    if (len >= 126)
        for (int bytes = len < 65536 ? 2 : 8; bytes-- > 0;)
            head[n++] = (uint8_t)((uint64_t)len >> bytes * 8);
    return n;
}

static void xor_mask(uint8_t *to, const uint8_t *from, size_t len, const uint8_t mask[4])
{
    uint64_t wide, word;
    size_t i = 0;
    memcpy(&wide, mask, 4);
    memcpy((uint8_t *)&wide + 4, mask, 4);
    for (; i + 8 <= len; i += 8) {
        memcpy(&word, from + i, 8);
        word ^= wide;
        memcpy(to + i, &word, 8);
    }
    for (; i < len; i++)
        to[i] = from[i] ^ mask[i & 3];
}

/* ---- latencies: a log-linear histogram, 64 steps to each doubling, so within 1.6 % ------------------------------- */

static uint32_t histogram[64 * 64];
static int64_t slowest;

static void record(int64_t ns)
{
    uint64_t v = ns < 64 ? 64 : (uint64_t)ns;
    int shift = 63 - __builtin_clzll(v) - 6;
    histogram[shift * 64 + (int)((v >> shift) - 64)]++;
    if (ns > slowest)
        slowest = ns;
}

static double percentile_us(double fraction)
{
    uint64_t total = 0, seen = 0;
    for (size_t i = 0; i < 64 * 64; i++)
        total += histogram[i];
    for (size_t i = 0; i < 64 * 64; i++) {
        seen += histogram[i];
        if (seen && (double)seen >= fraction * (double)total)
            return (double)((64 + i % 64) << (i / 64)) / 1000;
    }
    return 0;
}
