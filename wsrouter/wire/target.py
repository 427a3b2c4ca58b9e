"""The request target: one path, for routing and for forwarding alike (RFC 9112 3.2, RFC 3986 6.2.2).

A router that chooses by one spelling of a path and forwards another can be talked past its own rules.
So a target is brought into one form first. Most are in that form already: one regular expression tells.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from wsrouter.errors import HttpError

#: ``host``, ``host:port`` or ``[IPv6]:port``. Narrower than RFC 3986 3.2: no user information, and none of
#: the delimiters that no real host name holds but that mean something in a list or a template.
AUTHORITY: Final = re.compile(rb"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")

# "/." may start a dot segment; it is looked for apart, because it keeps this linear.
_SIMPLE: Final = re.compile(rb"(/[A-Za-z0-9/_~.-]*)(?:\?([^\x00-\x20\x7f#]*))?")
_ABSOLUTE: Final = re.compile(rb"(?i:https?|wss?)://([^/?#]*)(.*)", re.DOTALL)
_CONTROL_OR_BLANK: Final = re.compile(rb"[\x00-\x20\x7f]")
_MALFORMED_PERCENT: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PERCENT_OR_HIGH: Final = re.compile(rb"%([0-9A-Fa-f]{2})|([\x80-\xff])")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

_ALLOW = ((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),)


class Target(NamedTuple):
    """A request target in its one form."""

    #: ASCII, begins with ``/``; or ``*`` for a request about the server as a whole.
    path: str
    #: What stood behind the first ``?``, byte for byte; None without one.
    query: bytes | None
    #: The authority of an absolute-form target, as it came.
    authority: str | None = None

    def forward(self, path: str) -> bytes:
        """The target for a backend: ``path``, which may be shorter than our own by a prefix, with our query."""
        query = self.query
        return path.encode("ascii") if query is None else b"%b?%b" % (path.encode("ascii"), query)


def parse_target(target: bytes, method: str) -> Target:
    """The one form of a request target.

    In the path, unreserved characters are percent-decoded, other percent-encodings get upper-case digits,
    raw bytes from 0x80 up are percent-encoded, and dot segments are removed (RFC 3986 6.2.2, 5.2.4). Empty
    segments and ``%2F`` stay. The query stays byte for byte.

    Raises HttpError: 400 for a path that would climb above the root or holds a NUL, a backslash, a
    malformed percent-encoding or a fragment, for blanks and control characters anywhere, for an absolute
    form of another scheme, and for ``*`` with a method other than OPTIONS; 405 for CONNECT.
    """
    simple = _SIMPLE.fullmatch(target)
    if simple is not None and method != "CONNECT":
        raw, query = simple.groups()
        path = raw.decode("ascii")
        if "/." not in path:
            return tuple.__new__(Target, (path, query, None))
    return _parse_any(target, method)


def authority_of(target: bytes) -> bytes | None:
    """The authority of an absolute-form target; None for any other. Raises HttpError 400 if it is malformed."""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return None
    authority = absolute[1]
    if AUTHORITY.fullmatch(authority) is None:
        raise HttpError(400, "malformed authority in the request target")
    return authority


def _parse_any(target: bytes, method: str) -> Target:
    if method == "CONNECT":
        raise HttpError(405, "CONNECT is not served", _ALLOW)
    if target == b"*" and method == "OPTIONS":
        return Target("*", None)
    if _CONTROL_OR_BLANK.search(target):
        raise HttpError(400, "a blank or control character in the request target")
    if b"#" in target:
        raise HttpError(400, "a fragment in the request target")
    authority = authority_of(target)
    if authority is not None:
        target = target[target.index(b"://") + 3 + len(authority) :]
    path, mark, query = target.partition(b"?")
    if authority is not None and not path:
        path = b"/"
    if not path.startswith(b"/"):
        raise HttpError(400, "a request target of no known form")
    return Target(
        _remove_dot_segments(_normalise(path)),
        query if mark else None,
        None if authority is None else authority.decode("ascii"),
    )


def _normalise(path: bytes) -> str:
    if _MALFORMED_PERCENT.search(path):
        raise HttpError(400, "a malformed percent-encoding in the path")
    text = _PERCENT_OR_HIGH.sub(_recode, path)
    if b"\\" in text or b"%5C" in text:
        raise HttpError(400, "a backslash in the path")
    if b"%00" in text:
        raise HttpError(400, "a NUL in the path")
    return text.decode("ascii")


def _recode(found: re.Match[bytes]) -> bytes:
    digits, high = found.groups()
    code = high[0] if digits is None else int(digits, 16)
    return bytes((code,)) if code in _UNRESERVED else b"%%%02X" % code


def _remove_dot_segments(path: str) -> str:
    """RFC 3986 5.2.4, but what climbs above the root is refused rather than kept there."""
    if "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if not kept:
                raise HttpError(400, "the path climbs above the root")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
