"""The table of every section and option: how it is read, what its absence means, and one sentence for people.

``docs/configuration.md`` is what ``describe`` returns.
"""

from __future__ import annotations

from wsrouter.config.endpoint import endpoint
from wsrouter.config.files import log_target, readable_file, static_folder
from wsrouter.config.hosts import address, certificate_name, port, route_host
from wsrouter.config.options import Kind, Later, Option
from wsrouter.config.readers import (
    backend_list,
    by_value,
    certificate_files,
    commas,
    header_rules,
    one,
    one_at,
    origin_list,
)
from wsrouter.config.rules import path_rule, redirect, tunnel_match
from wsrouter.config.scalars import (
    choice,
    duration,
    duration_or_zero,
    keepalive,
    name,
    number,
    or_off,
    size,
    token,
    yes_no,
)
from wsrouter.config.values import TEMPLATE_FIELDS, Accept, ClientAuth, Log, Plain

_ROUTER = Kind(
    "router",
    "What holds for the whole process. At most one such section.",
    (
        Option("drain", one(duration_or_zero), "Longest polite end on SIGTERM; a second SIGTERM ends at once.", "30s"),
        Option("log", by_value(Log), "The form of log lines: `text` or `json`.", "text"),
        Option(
            "access_log",
            one_at(log_target),
            "Where one line per request, session and tunnel goes: a file, `-` for the log stream, or `off`.",
            "-",
        ),
        Option("log_query", one(yes_no), "Whether logged paths keep their query.", "no"),
        Later("workers", "Processes that share the listeners.", ("1",)),
        Later("drain_delay", "How long to go on accepting before a drain."),
        Later("drain_spread", "Over how long the Close frames of a drain are spread."),
        Later("drain_path", "The path that answers 503 during a drain."),
    ),
    named=False,
)

_LISTENER = Kind(
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
            "When TCP begins to probe a quiet peer, and how long sent bytes may stay unacknowledged, on both legs; or"
            " `off`.",
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
        Later("proxy_protocol", "Whether a PROXY header opens each connection.", ("no",)),
        Later("trusted", "Networks whose PROXY and X-Forwarded headers are believed.", ("",)),
        Later("max_connections_per_ip", "Most connections of one address.", ("",)),
        Later("handshakes_per_ip", "Most opening handshakes of one address.", ("",)),
    ),
)

_CERTIFICATE = Kind(
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

_TUNNEL = Kind(
    "tunnel",
    "A layer-4 rule: matching connections go to a backend untouched. Tried before all routes, in file order.",
    (
        Option("listener", commas(name), "The listeners it holds for; absent: all."),
        Option(
            "match",
            one(tunnel_match),
            "`tls [sni=NAME,...] [alpn=PROTOCOL,...]`, `http`, `opaque` (other bytes), `silence` (no bytes in time) or"
            " `any`. Names are exact or `*.example.com`.",
            required=True,
        ),
        Option("pool", one(name), "The pool that takes the connections.", required=True),
        Option("idle_timeout", one(or_off(duration)), "Longest time without a byte either way, or `off`.", "1h"),
    ),
)

_ROUTE = Kind(
    "route",
    "A layer-7 rule. Exactly one of `pool`, `static` and `redirect` is given. Host exact goes before wildcard before"
    " any; then path exact, then regular expressions in file order, then the longest prefix.",
    (
        Option("listener", commas(name), "The listeners it holds for; absent: all."),
        Option("host", one(route_host), "`example.com`, `*.example.com`, or absent for any; without a port."),
        Option(
            "path",
            one(path_rule),
            "`/x` is a prefix on a segment boundary, `= /x` exact, `~ ^/v[0-9]+/` a regular expression.",
            "/",
        ),
        Option("subprotocol", one(token), "Only requests that offer this WebSocket subprotocol."),
        Option("pool", one(name), "The pool that takes the requests."),
        Option(
            "static",
            one_at(static_folder),
            "A directory whose files are served; the path behind the route's own is the path in it.",
        ),
        Option(
            "redirect",
            one(redirect),
            "`[301|302|303|307|308] URL`, 302 when no status is given; an http(s) URL or a path; may hold"
            " placeholders.",
        ),
        Option(
            "accept",
            by_value(Accept),
            "Which requests go to the pool: `websocket` (plain ones get 426), `http` or `both`.",
            "websocket",
        ),
        Option(
            "origins",
            origin_list,
            "Which pages may open sessions: `off` (any), `same`, or a list of `https://example.com`, `null`, `same`."
            " Requests without Origin pass.",
            "off",
        ),
        Option(
            "set_header",
            header_rules,
            "Request headers for the backend, one per line, such as `X-Real-IP: {client_ip}`; an empty value takes the"
            " header away.",
        ),
        Option("strip_prefix", one(yes_no), "Whether the backend sees the path without the route's prefix.", "no"),
        Option(
            "idle_timeout",
            one(or_off(duration)),
            "Longest time without a frame of either peer (their pings count), or `off`.",
            "1h",
        ),
        Option("close_timeout", one(duration), "How long a close handshake may take.", "5s"),
        Later("session", "How frames are handled.", ("auto", "relay"), ("message",)),
        Later("dispatch", "What the balancer chooses a backend for.", ("session",)),
        Later("max_message", "Largest WebSocket message.", ("off",)),
        Later("message_rate", "Most messages in a time.", ("off",)),
        Later("ping", "Keep-alive pings of the router.", ("off",)),
    ),
)

_POOL = Kind(
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

_ECHO = Kind(
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

#: Every kind of section, in the order in which people read about them.
KINDS = (_ROUTER, _LISTENER, _CERTIFICATE, _TUNNEL, _ROUTE, _POOL, _ECHO)

_INTRODUCTION = f"""\
# Configuration

One INI file, read once. Every fault in it is reported at once, each with its line.

- `[kind NAME]` opens a section, `option = value` sets an option. Names hold letters, digits, `_`, `.` and `-`.
- A line that is indented deeper than its option continues the value.
- `#` and `;` begin a comment at the start of a line or after a blank.
- Durations: `500ms`, `5s`, `2m`, `1h`. Sizes: `512`, `16k`, `1m`, `1g` (bytes, powers of 1024). Truth: `yes`, `no`.
- Lists: one value per line, or separated by commas; paths and headers by line only.
- Relative paths begin at the folder of the configuration file.
- Host names may be written in Unicode.
- Placeholders for `set_header` and `redirect`: {", ".join(f"`{{{word}}}`" for word in TEMPLATE_FIELDS)};
  `{{{{` and `}}}}` stand for braces.
"""


def describe() -> str:
    """The whole table as a page of Markdown: sections, options, defaults, and what is not supported yet."""
    return "\n".join([_INTRODUCTION, *map(_describe_kind, KINDS)])


def _describe_kind(kind: Kind) -> str:
    page = [f"## {kind.title}", "", kind.doc, "", "| option | default | meaning |", "|---|---|---|"]
    later = []
    for row in kind.options:
        if isinstance(row, Later):
            later.append(f"- `{row.name}`: {row.doc}{_accepted(row)}")
        else:
            default = "required" if row.required else f"`{row.default}`" if row.default else ""
            page.append(f"| `{row.name}` | {default} | {row.doc.replace('|', chr(92) + '|')} |")
    if later:
        page += ["", "Not supported yet in this version:", "", *later]
    return "\n".join([*page, ""])


def _accepted(row: Later) -> str:
    words = [f"`{word}`" if word else "an empty value" for word in row.now]
    return f" Accepted already: {', '.join(words)}." if words else ""
