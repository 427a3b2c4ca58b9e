"""What is accepted, and how: the process itself, its listeners, their certificates."""

from __future__ import annotations

from wsrouter.config.endpoint import endpoint
from wsrouter.config.files import log_target, readable_file
from wsrouter.config.hosts import certificate_name
from wsrouter.config.limits import rate
from wsrouter.config.options import Kind, Option
from wsrouter.config.readers import by_value, certificate_files, commas, networks, one, one_at
from wsrouter.config.rules import plain_path
from wsrouter.config.scalars import choice, duration, duration_or_zero, keepalive, number, or_auto, or_off, size, yes_no
from wsrouter.config.values import ClientAuth, Log, Plain

#: Far more than a machine has processors to spare for it.
MOST_WORKERS = 64

ROUTER = Kind(
    "router",
    "What holds for the whole process. At most one such section.",
    (
        Option("drain", one(duration_or_zero), "Longest polite end on SIGTERM; a second SIGTERM ends at once.", "30s"),
        Option(
            "drain_delay",
            one(duration_or_zero),
            "How long a drain waits before it begins: connections are still taken while `drain_path` answers 503, so"
            " that a balancer in front looks away first.",
            "0s",
        ),
        Option(
            "drain_spread",
            one(duration_or_zero),
            "The time over which the Close frames of a drain are spread, never more than `drain`.",
            "5s",
        ),
        Option(
            "drain_path",
            one(plain_path),
            "The path that answers 503 once a drain is asked for, such as `/.wsrouter`; absent: none.",
        ),
        Option(
            "drain_code",
            one(choice({"1001": 1001, "1012": 1012})),
            "The close code that a drain gives: `1001` (going away) or `1012` (service restart).",
            "1001",
        ),
        Option("log", by_value(Log), "The form of log lines: `text` or `json`.", "text"),
        Option(
            "access_log",
            one_at(log_target),
            "Where one line per request, session and tunnel goes: a file, `-` for the log stream, or `off`.",
            "-",
        ),
        Option("log_query", one(yes_no), "Whether logged paths keep their query.", "no"),
        Option(
            "workers",
            one(or_auto(number(1, MOST_WORKERS))),
            f"Processes that share the listeners, 1 to {MOST_WORKERS}, or `auto`: as many as the router may use"
            " processors. With 1 all is one process.",
            "1",
        ),
    ),
    named=False,
)

LISTENER = Kind(
    "listener",
    "One endpoint that accepts connections, with its TLS material and limits. At least one is needed.",
    (
        Option(
            "endpoint",
            one_at(endpoint),
            "Where to listen: a Twisted endpoint string of kind `tcp`, `tcp6`, `unix` or `systemd`, such as `tcp:8080`"
            " or `tcp:8080:interface=127.0.0.1`.",
            required=True,
        ),
        Option(
            "plain",
            by_value(Plain),
            "HTTP without TLS: `yes` serves it, `no` refuses it, `redirect` sends it to https (upgrades get 403).",
            "yes",
        ),
        Option("sniff_timeout", one(duration), "From accept until it is known what the connection speaks.", "5s"),
        Option("tls_timeout", one(duration), "How long the TLS handshake may take.", "10s"),
        Option("head_timeout", one(duration), "How long each request head may take.", "10s"),
        Option("keep_alive", one(duration), "How long a connection may be idle between requests.", "75s"),
        Option("body_timeout", one(duration), "Longest pause between bytes of a request body.", "60s"),
        Option("max_body", one(size), "Largest body of a plain HTTP request.", "10m"),
        Option(
            "tcp_keepalive",
            one(or_off(keepalive)),
            "When TCP begins to probe a quiet peer, on both legs; one that has acknowledged nothing for twice as long"
            " (3 s longer at least) is gone. Or `off`. Backends on this machine are not probed.",
            "60s",
        ),
        Option(
            "certificates",
            certificate_files,
            "PEM files, each a chain with its key, or globs, one per line; served by the names in them.",
        ),
        Option(
            "default_certificate",
            one_at(readable_file),
            "The PEM file for a client that names no host or an unknown one; without it the handshake is refused.",
        ),
        Option("tls_min", one(choice({"1.2": "1.2", "1.3": "1.3"})), "Oldest TLS version: `1.2` or `1.3`.", "1.2"),
        Option(
            "demo_certificates",
            commas(certificate_name),
            "Names for which throwaway certificates are made at start, for trying things out.",
        ),
        Option(
            "max_connections", one(number(1, 10**9)), "Most connections at a time; absent: what the descriptors allow."
        ),
        Option("max_connections_per_ip", one(number(1, 10**9)), "Most connections of one address at a time."),
        Option(
            "connections_per_ip",
            one(rate),
            "How often one address may connect: a rate, such as `50/s` or `300/m burst=50`.",
        ),
        Option("handshakes_per_ip", one(rate), "How often one address may ask for a session: a rate."),
        Option(
            "proxy_protocol",
            one(choice({"no": False, "require": True})),
            "`require`: a PROXY header (v1 or v2) of a `trusted` peer opens each connection, and tells the client.",
            "no",
        ),
        Option("trusted", networks, "Networks whose PROXY headers, X-Forwarded-* and Forwarded fields are believed."),
        Option("allow", networks, "Networks whose clients are let in; absent: all."),
        Option("deny", networks, "Networks whose clients are turned away, even where `allow` holds them."),
    ),
)

CERTIFICATE = Kind(
    "certificate",
    "What one certificate needs beyond a listener's `certificates`.",
    (
        Option("file", one_at(readable_file), "The PEM file: a chain with its key.", required=True),
        Option(
            "client_ca",
            one_at(readable_file),
            "PEM file of the CAs that vouch for client certificates; goes with `client_auth`.",
        ),
        Option(
            "client_auth",
            by_value(ClientAuth),
            "Whether clients must (`required`) or may (`optional`) show a certificate; goes with `client_ca`.",
        ),
    ),
)
