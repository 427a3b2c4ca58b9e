"""wsrouter: a reverse proxy and load balancer for WebSockets, run by ``twistd``.

The way of a byte, and the folders that it passes (each imports only from those below it):

    tap, service          options; the process: start, signals, end
    reload, assembly      another configuration in the place of the old; configuration -> parts
    demo/                 demonstration backends and certificates
    ops/                  drain, access log, on_down, systemd: they read `live`, nothing below reads them
    ports                 which listening sockets a reload keeps, opens and closes
    listener/             binds, accepts, reads PROXY headers, lets in, waits for the verdict, hands the leg on
    layer7/  layer4/      termination, request heads, upgrades, files, HTTP proxy / tunnels
    live/                 the registry of live sessions and tunnels, and how each ended
    backends/             dialling a backend, resolving its name
    relay/                the data plane: the relay loop, legs (plain and TLS), coupling
    sniff/                first bytes -> verdict                                          (pure)
    wire/                 RFC 6455 frames and opening handshake, HTTP heads and bodies    (pure)
    policy/               routing, balancing, admission: decisions                        (pure)
    config/               INI text -> frozen values, every fault at once                  (pure)
    errors                what one part raises and another answers
"""

__version__ = "0.1.0"
