"""Who does the work: pools of backends, and the demonstration backends."""

from __future__ import annotations

from wsrouter.config.files import readable_file
from wsrouter.config.hosts import address, certificate_name, port
from wsrouter.config.options import Kind, Later, Option
from wsrouter.config.readers import backend_list, commas, one, one_at
from wsrouter.config.scalars import duration, number, yes_no

POOL = Kind(
    "pool",
    "A named group of servers.",
    (
        Option(
            "backends",
            backend_list,
            "`HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`, by line or comma, each with any of `weight=N`,"
            " `max_sessions=N`, `backup` behind it.",
            required=True,
        ),
        Option("connect_timeout", one(duration), "How long connecting to a backend may take.", "2s"),
        Option("handshake_timeout", one(duration), "How long a backend may take for its answer or its 101.", "10s"),
        Option("retries", one(number(0, 100)), "How many other backends are tried, before the 101 only.", "2"),
        Option("tls", one(yes_no), "Whether to speak TLS to the backends.", "no"),
        Option("tls_ca", one_at(readable_file), "PEM file of the CAs to trust; absent: the system's."),
        Option("tls_name", one(address), "The name to send and to verify; absent: each backend's own host."),
        Option(
            "tls_certificate", one_at(readable_file), "PEM file (chain with key) that the router shows to backends."
        ),
        Option("tls_verify", one(yes_no), "Whether a backend must prove its name.", "yes"),
        Later(
            "balance",
            "How a backend is chosen.",
            ("round-robin",),
            ("least-sessions", "random-two", "first", "hash"),
        ),
        Later("sticky", "What keeps a client on its backend.", ("off",)),
        Later("max_failures", "Failures that take a backend out.", ("0",)),
        Later("failure_time", "The time in which failures count."),
        Later("check", "How backends are probed.", ("off",)),
        Later("check_interval", "Time between probes."),
        Later("check_rise", "Good probes that bring a backend back."),
        Later("check_fall", "Bad probes that take a backend out."),
        Later("slow_start", "How long a returned backend is spared.", ("off",)),
        Later("queue", "How many sessions may wait for a backend.", ("0",)),
        Later("queue_timeout", "How long they may wait."),
        Later("send_proxy", "Whether backends get a PROXY header.", ("no",)),
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
