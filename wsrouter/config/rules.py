"""The values with a small language of their own: what a tunnel matches, a route's path, redirects, header rules."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass

from wsrouter.config.faults import BadValue, nearest, quoted, unknown
from wsrouter.config.hosts import server_name
from wsrouter.config.scalars import protocol, token
from wsrouter.config.values import TEMPLATE_FIELDS, Match, PathKind, PathRule, Redirect

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SEGMENT_PLACE = re.compile(r"/\{(?:path|uri)\}")
# What RFC 3986 lets stand in a path; the router compares against a path that holds nothing else.
_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")
_STATUSES = (301, 302, 303, 307, 308)

#: Fields that belong to one connection or to the opening handshake (RFC 9110 7.6.1, RFC 6455 11.3).
_OWN_HEADERS = (
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "upgrade"),
    *("content-length", "expect", "trailer", "transfer-encoding"),
)


@dataclass(frozen=True, slots=True)
class TunnelMatch:
    """The parts of a ``match`` option."""

    match: Match
    sni: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()


def tunnel_match(text: str) -> TunnelMatch:
    """``tls [sni=a,b] [alpn=h2,...]``, ``http``, ``opaque``, ``silence`` or ``any``."""
    kind, *words = text.split()
    kinds = {match.value: match for match in Match}
    if kind not in kinds:
        raise unknown(kind, kinds)
    parsers = {"sni": server_name, "alpn": protocol}
    found: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in parsers:
            near = nearest(key, parsers)
            hint = f"did you mean '{near}=...'?" if near else "known: sni=NAME,... and alpn=PROTOCOL,..."
            raise BadValue(f"unknown word {quoted(word)} ({hint})")
        if kinds[kind] is not Match.TLS:
            raise BadValue(f"'{key}' goes with 'tls' only, not with '{kind}'")
        if key in found:
            raise BadValue(f"'{key}' is given twice")
        found[key] = tuple(dict.fromkeys(parsers[key](part) for part in value.split(",")))
    return TunnelMatch(kinds[kind], **found)


def path_rule(text: str) -> PathRule:
    """``/x`` (prefix), ``= /x`` (exact) or ``~ ^/x`` (regular expression)."""
    mark, rest = text[0], text[1:].strip()
    if mark == "~":
        return PathRule(PathKind.REGEX, rest, _regex(rest))
    if mark == "=":
        return PathRule(PathKind.EXACT, plain_path(rest))
    return PathRule(PathKind.PREFIX, plain_path(text))


def _regex(text: str) -> re.Pattern[str]:
    if not text:
        raise BadValue("the regular expression after '~' is missing")
    try:
        # What Python deprecates in a pattern is no business of the router's operator.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadValue(f"{quoted(text)} is not a regular expression ({error})") from None


def plain_path(text: str) -> str:
    """A path as the router compares it; anything else could never match, so it is a fault."""
    if not _PATH.fullmatch(text):
        raise BadValue(f"{quoted(text)} is not a path (expected /..., no query, other characters percent-encoded)")
    if {".", ".."} & set(text.split("/")):
        raise BadValue(
            f"{quoted(text)} holds '.' or '..' (requests are routed with those resolved, it would never match)"
        )
    for code in re.findall(r"%([0-9A-Fa-f]{2})", text):
        if _UNRESERVED.fullmatch(chr(int(code, 16))):
            plain = chr(int(code, 16))
            raise BadValue(f"{quoted(text)} holds '%{code}' (requests are routed with it decoded: write '{plain}')")
        if code != code.upper():
            raise BadValue(f"{quoted(text)} holds '%{code}' (requests are routed with '%{code.upper()}')")
    return text


def template(text: str) -> str:
    """Text with placeholders, unchanged; ``{{`` and ``}}`` stand for braces."""
    for found in _BRACES.finditer(text):
        if found[0] in ("{{", "}}"):
            continue
        if found[1] is None:
            raise BadValue(f"a lone '{found[0]}' in {quoted(text)} (write '{found[0] * 2}' for a brace)")
        if found[1] not in TEMPLATE_FIELDS:
            near = nearest(found[1], TEMPLATE_FIELDS)
            hint = f"did you mean '{{{near}}}'?" if near else f"known: {', '.join(TEMPLATE_FIELDS)}"
            raise BadValue(f"unknown placeholder {quoted(found[0])} ({hint})")
    return text


def redirect(text: str) -> Redirect:
    """``[301|302|303|307|308] URL``, 302 by default; an http(s) URL, or a path of the same host."""
    first, *rest = text.split(None, 1)
    status = 302
    if re.fullmatch(r"[0-9]+", first):
        if first not in map(str, _STATUSES):
            raise BadValue(f"unknown status {quoted(first)} (known: {', '.join(map(str, _STATUSES))})")
        status, text = int(first), "".join(rest)
    if not text.isascii() or re.search(r"\s", text):
        raise BadValue(f"{quoted(text)} is not a URL (blanks and other than ASCII are percent-encoded)")
    if re.match(r"https?://[^/?#]", text):
        return Redirect(status, template(text))
    # Two slashes at the start name a host (RFC 3986 4.2), and {path} brings a slash of its own.
    if not text.startswith("/") or text.startswith(("//", "/\\")) or _SEGMENT_PLACE.match(text):
        raise BadValue(
            f"{quoted(text)} is not a target (expected http://..., https://... or a path that begins with one /)"
        )
    return Redirect(status, template(text))


def header_rule(text: str) -> tuple[str, str]:
    """``Name: template`` as a pair; an empty template takes the header away.

    Refused: names that are no token (RFC 9110 5.1), values with control characters (RFC 9110 5.5), and
    the fields that the router itself owns: hop-by-hop ones, framing, the opening handshake.
    """
    name, colon, value = text.partition(":")
    name, value = name.rstrip(), value.strip()
    if not colon:
        raise BadValue(f"{quoted(text)} is not a header (expected, for example, X-Real-IP: {{client_ip}})")
    token(name)
    lower = name.lower()
    if lower in _OWN_HEADERS or lower.startswith("sec-websocket-"):
        raise BadValue(f"the header {quoted(name)} belongs to the router and cannot be set")
    if lower == "host" and not value:
        raise BadValue("the header 'Host' cannot be taken away (RFC 9112 3.2)")
    if not value.replace("\t", " ").isprintable():
        raise BadValue(f"{quoted(value)} is not the value of a header (expected printable text)")
    return name, template(value)
