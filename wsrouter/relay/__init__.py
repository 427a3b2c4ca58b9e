"""The data plane: one loop that serves all legs.

A *leg* is one connection. It is a Twisted transport, so any protocol can be attached to it; two legs can
also be *coupled*, and from then on the bytes of one go to the other without passing a protocol.

    deadlines   coarse timers: many, cheap, mostly cancelled
    loop        the relay: an epoll object, which waits for the reactor too
    acceptor    a listening socket on the relay
    leg         a plain connection (socket_facts: what it tells of its socket)
    tls         a connection with TLS on it (handshake included)
    protocol    what is attached to a leg while its bytes have to be read
    pump        one direction of a coupling: raw bytes, or RFC 6455 frames
    splice      how long payload passes without being read
    policed     the same for frames that are held to rates and sizes, and for pings of the router's own
"""
