/*
 * TLS of the load generator's clients, by OpenSSL on their sockets. Included by conn.h, whose names it uses.
 */
static SSL_CTX *tls_context;
static SSL_SESSION *tls_session;
static char tls_facts[96] = "";

static int keep_session(SSL *ssl, SSL_SESSION *session)
{
    (void)ssl;
    SSL_SESSION_free(tls_session);
    tls_session = session;
    return 1;
}

/* One key exchange and one cipher, so that every contender does the same arithmetic. */
static void tls_setup(void)
{
    tls_context = SSL_CTX_new(TLS_client_method());
    if (!tls_context || !SSL_CTX_set1_groups_list(tls_context, "X25519") ||
        !SSL_CTX_set_ciphersuites(tls_context, "TLS_AES_128_GCM_SHA256") ||
        SSL_CTX_set_alpn_protos(tls_context, (const uint8_t *)"\x08http/1.1", 9))
        fail("cannot set TLS up");
    SSL_CTX_set_min_proto_version(tls_context, TLS1_3_VERSION);
    SSL_CTX_set_quiet_shutdown(tls_context, 1);
#ifdef SSL_OP_IGNORE_UNEXPECTED_EOF
    /* Some proxies close TCP without close_notify; OpenSSL would then never resume that session. */
    SSL_CTX_set_options(tls_context, SSL_OP_IGNORE_UNEXPECTED_EOF);
#endif
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (opt.resume) {
        SSL_CTX_set_session_cache_mode(tls_context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(tls_context, keep_session);
    }
}

static void tls_fail(struct conn *c, int result, const char *doing)
{
    char text[256];
    int kind = SSL_get_error(c->ssl, result);
    ERR_error_string_n(ERR_peek_last_error(), text, sizeof text);
    fail("TLS %s: error %d, %s", doing, kind, text);
}

static bool tls_handshake(struct conn *c)
{
    if (!c->ssl) {
        c->ssl = SSL_new(tls_context);
        if (!c->ssl || !SSL_set_fd(c->ssl, c->fd) || !SSL_set_tlsext_host_name(c->ssl, "bench.test"))
            fail("cannot start TLS");
        if (tls_session) { /* a copy: OpenSSL marks a ticket as spent when it was used once */
            SSL_SESSION *copy = SSL_SESSION_dup(tls_session);
            SSL_set_session(c->ssl, copy);
            SSL_SESSION_free(copy);
        }
    }
    int result = SSL_connect(c->ssl);
    if (result != 1) {
        int kind = SSL_get_error(c->ssl, result);
        if (kind != SSL_ERROR_WANT_READ && kind != SSL_ERROR_WANT_WRITE) {
            if (!may_be_refused(c))
                tls_fail(c, result, "handshake");
            ERR_clear_error();
            c->state = DEAD;
            return false;
        }
        want(c, kind == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
        return false;
    }
    handshakes++;
    last_progress = now_ns(); /* in a storm, thousands may come before the first session is open */
    resumed += SSL_session_reused(c->ssl);
    if (!*tls_facts)
        snprintf(tls_facts, sizeof tls_facts, "%s %s", SSL_get_version(c->ssl), SSL_get_cipher(c->ssl));
    return true;
}
