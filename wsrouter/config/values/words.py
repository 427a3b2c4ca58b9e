"""The words that options choose from."""

from __future__ import annotations

import enum


class Plain(enum.Enum):
    """What a listener does with HTTP that comes without TLS."""

    YES = "yes"
    NO = "no"
    REDIRECT = "redirect"


class ClientAuth(enum.Enum):
    """Whether a client must, or may, show a certificate (only where ``client_ca`` is set)."""

    REQUIRED = "required"
    OPTIONAL = "optional"


class Match(enum.Enum):
    """What a tunnel rule looks for."""

    TLS = "tls"
    HTTP = "http"
    OPAQUE = "opaque"
    SILENCE = "silence"
    ANY = "any"


class PathKind(enum.Enum):
    """How a route's path is compared."""

    EXACT = "exact"
    REGEX = "regex"
    PREFIX = "prefix"


class Accept(enum.Enum):
    """Which requests a pool route takes."""

    WEBSOCKET = "websocket"
    HTTP = "http"
    BOTH = "both"


class Session(enum.Enum):
    """How the sessions of a route are carried."""

    AUTO = "auto"
    RELAY = "relay"
    MESSAGE = "message"


class Compression(enum.Enum):
    """On which legs of a message session permessage-deflate is spoken (RFC 7692)."""

    OFF = "off"
    CLIENT = "client"
    BOTH = "both"


class Dispatch(enum.Enum):
    """What the balancer chooses a backend for."""

    SESSION = "session"
    MESSAGE = "message"


class Log(enum.Enum):
    """The form of log lines."""

    TEXT = "text"
    JSON = "json"


class Balance(enum.Enum):
    """How a pool chooses a backend."""

    ROUND_ROBIN = "round-robin"
    LEAST_SESSIONS = "least-sessions"
    RANDOM_TWO = "random-two"
    FIRST = "first"
    HASH = "hash"


class KeySource(enum.Enum):
    """What ``balance = hash`` looks at."""

    CLIENT_IP = "client-ip"
    PATH = "path"
    HEADER = "header"
    COOKIE = "cookie"
    QUERY = "query"
    SNI = "sni"
    #: Of a message: for routes with ``Dispatch.MESSAGE``.
    JSON = "json"


class CheckKind(enum.Enum):
    """How a backend is probed."""

    TCP = "tcp"
    HTTP = "http"
    WEBSOCKET = "websocket"


class OnDown(enum.Enum):
    """What becomes of the live sessions of a backend that goes down or is removed."""

    KEEP = "keep"
    CLOSE = "close"


class OnRate(enum.Enum):
    """What becomes of a client that sends more than its rate."""

    SLOW = "slow"
    CLOSE = "close"


class IdleCounts(enum.Enum):
    """Which frames keep a session from being idle."""

    FRAMES = "frames"
    DATA = "data"


class SameSite(enum.Enum):
    """The SameSite attribute of a cookie (RFC 6265bis 5.5)."""

    STRICT = "Strict"
    LAX = "Lax"
    NONE = "None"


class SendProxy(enum.Enum):
    """The PROXY header that opens each connection to a backend."""

    V1 = "v1"
    V2 = "v2"
