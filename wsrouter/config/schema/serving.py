"""Who does the work: pools of backends, and the demonstration backends."""

from __future__ import annotations

from wsrouter.config.files import readable_file, secret_file
from wsrouter.config.hosts import address, certificate_name, port
from wsrouter.config.options import Kind, Option
from wsrouter.config.pool_rules import balance, check, statuses, sticky
from wsrouter.config.readers import backend_list, by_value, commas, one, one_at
from wsrouter.config.scalars import choice, duration, duration_or_zero, number, or_off, yes_no
from wsrouter.config.values import OnDown, SendProxy

_CHECKS = (
    Option(
        "check",
        one(check),
        "How backends are probed: `off`, `tcp`, `http PATH` or `websocket PATH` (an opening handshake and a ping)."
        " Behind it any of `host=NAME`, `subprotocol=NAME` (`websocket` only) and `port=N`.",
        "off",
    ),
    Option(
        "check_status",
        commas(statuses),
        "The statuses that pass, for `http`: a list such as `200-299, 404`.",
        "200-399",
    ),
    Option("check_interval", one(duration), "Time between the probes of a backend.", "5s"),
    Option("check_timeout", one(duration), "How long a probe may take.", "2s"),
    Option("check_rise", one(number(1, 1000)), "Good probes in a row that bring a backend back.", "2"),
    Option("check_fall", one(number(1, 1000)), "Bad probes in a row that take a backend out.", "3"),
    Option(
        "check_tls",
        one(choice({"pool": "pool", "yes": "yes", "no": "no"})),
        "Whether probes speak TLS: `pool` (as the pool does; the options below go before its own), `yes` (by the"
        " options below alone) or `no`.",
        "pool",
    ),
    Option("check_tls_ca", one_at(readable_file), "PEM file of the CAs that a probe trusts."),
    Option("check_tls_name", one(address), "The name that a probe sends and verifies."),
    Option(
        "check_tls_verify", one(yes_no), "Whether a probed backend must prove its name; absent: yes, or as the pool."
    ),
)

POOL = Kind(
    "pool",
    "A named group of servers.",
    (
        Option(
            "backends",
            backend_list,
            "`HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`, by line or comma, each with any of `weight=N` (0: nothing new),"
            " `max_sessions=N`, `backup` behind it.",
            required=True,
        ),
        Option("connect_timeout", one(duration), "How long connecting to a backend may take.", "2s"),
        Option("handshake_timeout", one(duration), "How long a backend may take for its answer or its 101.", "10s"),
        Option("retries", one(number(0, 100)), "How many other backends are tried, before the 101 only.", "2"),
        Option("retry_time", one(duration), "How long after the first attempt another may begin.", "10s"),
        Option("tls", one(yes_no), "Whether to speak TLS to the backends.", "no"),
        Option("tls_ca", one_at(readable_file), "PEM file of the CAs to trust; absent: the system's."),
        Option("tls_name", one(address), "The name to send and to verify; absent: each backend's own host."),
        Option(
            "tls_certificate", one_at(readable_file), "PEM file (chain with key) that the router shows to backends."
        ),
        Option("tls_verify", one(yes_no), "Whether a backend must prove its name.", "yes"),
        Option(
            "balance",
            one(balance),
            "How a backend is chosen: `round-robin`, `least-sessions`, `random-two` (the less loaded of two drawn),"
            " `first` (in the order of the file, each until it is full), or `hash` with one of `client-ip`, `path`,"
            " `header:NAME`, `cookie:NAME`, `query:NAME`, `sni` behind it, so that equal ones go to the same backend;"
            " or `json:/POINTER` (RFC 6901), a part of each message, for routes with `dispatch = message`.",
            "round-robin",
        ),
        Option(
            "sticky",
            one(sticky),
            "`off`, or `cookie NAME`: a cookie brings a client back to its backend. Behind it any of"
            " `samesite=lax|strict|none` (lax), `secure=yes|no` (absent: yes on TLS), `max_age=DURATION` (absent: until"
            " the browser ends) and `path=/` (all).",
            "off",
        ),
        Option(
            "sticky_secret",
            one_at(secret_file),
            "A file with 16 bytes or more that sign the cookie, so that no client makes one up.",
        ),
        Option("max_failures", one(number(0, 10**6)), "Failed attempts that take a backend out; `0`: never.", "3"),
        Option(
            "failure_time", one(duration), "The time within which they count, and for which the backend is out.", "10s"
        ),
        *_CHECKS,
        Option(
            "on_down",
            by_value(OnDown),
            "What becomes of the live sessions of a backend that goes down or is removed: `keep` or `close`.",
            "keep",
        ),
        Option("down_spread", one(duration_or_zero), "Over how long `on_down = close` closes them.", "5s"),
        Option(
            "slow_start",
            one(or_off(duration)),
            "How long the share of a backend that came back grows until it is whole, or `off`; not for `hash` and"
            " `first`.",
            "off",
        ),
        Option("queue", one(number(0, 10**6)), "How many clients may wait while every backend is full.", "0"),
        Option("queue_timeout", one(duration), "How long they may wait.", "5s"),
        Option(
            "send_proxy",
            one(choice({"no": None, "v1": SendProxy.V1, "v2": SendProxy.V2})),
            "The PROXY header that opens each connection to a backend: `no`, `v1` or `v2`.",
            "no",
        ),
    ),
)

ECHO = Kind(
    "echo",
    "Demonstration backends in the router's own process, on 127.0.0.1 only.",
    (
        Option("ports", commas(port), "The ports, one echo server on each.", required=True),
        Option(
            "demo_certificate",
            one(certificate_name),
            "The name for which they speak TLS with a throwaway certificate; absent: no TLS.",
        ),
    ),
)
