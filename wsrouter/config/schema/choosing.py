"""What is done with a connection or a request: tunnels and routes."""

from __future__ import annotations

from wsrouter.config.files import static_folder
from wsrouter.config.hosts import route_host
from wsrouter.config.limits import byte_rate, rate
from wsrouter.config.options import Kind, Option
from wsrouter.config.readers import by_value, commas, header_rules, lines, networks, one, one_at, origin_list
from wsrouter.config.rules import path_rule, redirect, tunnel_match
from wsrouter.config.scalars import duration, name, number, or_off, size, token, yes_no
from wsrouter.config.session_rules import filter_rule
from wsrouter.config.values import Accept, Compression, Dispatch, IdleCounts, OnRate, Session

TUNNEL = Kind(
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
        Option("allow", networks, "Networks whose clients it serves; absent: all. Others are closed."),
        Option("deny", networks, "Networks whose clients it never serves, even where `allow` holds them."),
    ),
)

#: What a session's frames are held to; nothing of it looks at the payload of a message.
_FRAMES = (
    Option(
        "max_message",
        one(or_off(size)),
        "The largest message, either way, or `off`. Relay sessions take its size on the wire (compressed, where the two"
        " ends agreed on that), message sessions the size of what it holds. Who sends a larger one gets Close 1009."
        " Absent: 1m for message sessions, `off` for relay sessions.",
    ),
    Option(
        "max_fragments",
        one(number(1, 10**9)),
        "The most fragments of a message; goes with `max_message`, which message sessions always have. Who sends more"
        " gets Close 1008.",
        "16384",
    ),
    Option(
        "message_rate",
        one(or_off(rate)),
        "How many messages a client may send, its pings and pongs included: a rate, or `off`.",
        "off",
    ),
    Option(
        "byte_rate",
        one(or_off(byte_rate)),
        "How many bytes a client may send: a rate of sizes, such as `64k/s` or `10m/m burst=1m`, or `off`.",
        "off",
    ),
    Option(
        "on_rate",
        by_value(OnRate),
        "What becomes of a client that is over `message_rate` or `byte_rate`: `slow` (it is read no faster) or `close`"
        " (Close 1008).",
        "slow",
    ),
    Option(
        "ping",
        one(or_off(duration)),
        "How long a client may be silent before the router pings it, or `off`.",
        "off",
    ),
    Option("backend_ping", one(or_off(duration)), "The same for the backend.", "off"),
    Option(
        "ping_timeout",
        one(duration),
        "How long who was pinged may stay silent before it is given up; goes with `ping` or `backend_ping`.",
        "20s",
    ),
)

_MESSAGES = (
    Option(
        "session",
        by_value(Session),
        "How frames pass: `relay` (as they come), `message` (as whole messages that filters see) or `auto` (`message`"
        " only where an option needs it).",
        "auto",
    ),
    Option(
        "filter",
        lines(lambda text, _: filter_rule(text)),
        "What sees each message, one per line, in order: `deny-words FILE`, `max-length N`, `json-schema FILE` or a"
        " plugin's name, with its words. Needs message sessions.",
    ),
    Option(
        "compression",
        by_value(Compression),
        "Of message sessions: permessage-deflate with the `client`, with `both` sides, or `off`. Relay sessions leave"
        " it to the two ends.",
        "off",
    ),
    Option(
        "dispatch",
        by_value(Dispatch),
        "What the pool's `balance` chooses a backend for: each `session`, or each `message` of a client. The latter"
        " needs message sessions, and backends that bear it.",
        "session",
    ),
    Option(
        "fan_out",
        one(number(1, 1000)),
        "With `dispatch = message`: how many backends a client's messages may go to while it is connected.",
        "4",
    ),
)

ROUTE = Kind(
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
            "Longest time without a frame of either peer, or `off`. The router's own pings do not count.",
            "1h",
        ),
        Option(
            "idle_counts",
            by_value(IdleCounts),
            "What `idle_timeout` counts: `frames` (the peers' pings and pongs, too) or `data` (messages only).",
            "frames",
        ),
        Option(
            "close_timeout",
            one(duration),
            "How long a close handshake may take; and how long a frame may stand still that a Close waits for.",
            "5s",
        ),
        *_FRAMES,
        Option("allow", networks, "Networks whose clients it serves; absent: all. Others get 403."),
        Option("deny", networks, "Networks whose clients it never serves, even where `allow` holds them."),
        *_MESSAGES,
    ),
)
