"""Static files of a route.

``twisted.web.static.File`` is not used, only its way of a pull producer: it fails on a suffix range longer than
the file, ignores If-Range, follows symbolic links out of its directory, lists directories, compares no entity tags
and never ends an answer whose file shrank.

A path is decoded once, strictly, and must stay below the root after every symbolic link is followed. What is hidden
(a name that begins with a dot, but for ``.well-known`` at the top) is not served, nor is anything but regular files.
All of that looks like 404: a client learns nothing about what it may not have.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from twisted.internet.interfaces import IPullProducer
from twisted.web import http
from zope.interface import implementer

from wsrouter.layer7.ranges import parse_ranges
from wsrouter.layer7.request import PlainRequest

#: How much of a file is read at once, in bytes.
READ_SIZE = 64 * 1024

_ESCAPED = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_WELL_KNOWN = ".well-known"
_INDEX = "index.html"

# Not the machine's own tables: the same file has the same type everywhere.
_TYPES = mimetypes.MimeTypes()
for _extension, _type in {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".map": "application/json",
    ".md": "text/markdown",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".avif": "image/avif",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".gz": "application/gzip",
}.items():
    _TYPES.add_type(_type, _extension)
# A compressed file is served as what it is, so an archive arrives as an archive.
_TYPES.encodings_map = {}


@dataclass(frozen=True, slots=True)
class Found:
    """What a path leads to: a file, or a directory that was asked for without its final slash."""

    file: str | None


class Files:
    """The files below ``root``, an absolute path; the root itself may be a link, looked up anew for each request."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def serve(self, request: PlainRequest, path: str) -> None:
        """Answer with the file at ``path``, the part of the normalised request path behind the route's prefix."""
        if request.head.method not in ("GET", "HEAD"):
            request.answer(http.NOT_ALLOWED, [(b"Allow", b"GET, HEAD")])
            return
        found = locate(self._root, path)
        if found is None:
            request.answer(http.NOT_FOUND)
        elif found.file is None:
            request.answer(http.MOVED_PERMANENTLY, [(b"Location", _with_slash(request))])
        else:
            _serve_file(request, found.file)


def locate(root: Path, path: str) -> Found | None:
    """The file that an escaped ``path`` names below ``root``; None if there is none that may be served."""
    segments = _decode(path)
    if segments is None:
        return None
    try:
        top = os.path.realpath(root, strict=True)
        real = os.path.realpath(os.path.join(top, *segments), strict=True)
        if os.path.isdir(real):
            if segments and segments[-1]:
                return Found(None) if _visible(top, real) else None
            real = os.path.realpath(os.path.join(real, _INDEX), strict=True)
        elif segments and not segments[-1]:
            return None
    except (OSError, ValueError):
        return None
    return Found(real) if _visible(top, real) else None


def _decode(path: str) -> list[str] | None:
    """The names in a path; the last is empty behind a final slash. None for what no file may be asked for with."""
    if not _ESCAPED.fullmatch(path):
        return None
    segments = []
    for escaped in path.removeprefix("/").split("/"):
        try:
            segments.append(unquote_to_bytes(escaped).decode())
        except UnicodeDecodeError:
            return None
    if any("/" in name or "\\" in name or "\0" in name for name in segments):
        return None
    if "" in segments[:-1] or _hidden(segments):
        return None
    return segments


def _hidden(names: Iterable[str]) -> bool:
    return any(name.startswith(".") and (depth or name != _WELL_KNOWN) for depth, name in enumerate(names))


def _visible(top: str, real: str) -> bool:
    """Whether a path without links lies below the root and none of its names is hidden."""
    try:
        return not _hidden(Path(real).relative_to(top).parts)
    except ValueError:
        return False


def _with_slash(request: PlainRequest) -> bytes:
    """The request's own address with a final slash; never ``//host``, which would lead elsewhere."""
    path = b"/" + request.path.lstrip(b"/") + b"/"
    query = request.target.query
    return path if query is None else path + b"?" + query


def _content_type(name: str) -> bytes:
    kind = _TYPES.guess_type(name, strict=True)[0] or "application/octet-stream"
    return (kind + "; charset=utf-8" if kind.startswith("text/") else kind).encode("ascii")


def _serve_file(request: PlainRequest, path: str) -> None:
    try:
        # A FIFO must not block the router, nor a link that has just taken the place of what was looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        exhausted = error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
        request.answer(http.SERVICE_UNAVAILABLE if exhausted else http.NOT_FOUND)
        return
    sent = False
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            request.answer(http.NOT_FOUND)
            return
        pieces = _prepare(request, path, facts)
        if request.head.method == "HEAD" or not pieces:
            request.write(b"")  # type: ignore[no-untyped-call]
            request.finish()  # type: ignore[no-untyped-call]
            return
        sent = True
    finally:
        if not sent:
            os.close(descriptor)
    request.registerProducer(_Sending(request, descriptor, pieces), False)  # type: ignore[no-untyped-call]


#: What an answer is made of: bytes as they are, or an offset and a length in the file.
_Piece = bytes | tuple[int, int]


def _prepare(request: PlainRequest, path: str, facts: os.stat_result) -> list[_Piece]:
    """Set the status and the fields; return what the body consists of."""
    headers = request.responseHeaders
    etag = b'"%x-%x"' % (facts.st_mtime_ns, facts.st_size)
    modified = http.datetimeToString(int(facts.st_mtime))  # type: ignore[no-untyped-call]
    headers.setRawHeaders(b"ETag", [etag])
    headers.setRawHeaders(b"Last-Modified", [modified])
    headers.setRawHeaders(b"Cache-Control", [b"no-cache"])
    headers.setRawHeaders(b"X-Content-Type-Options", [b"nosniff"])
    if _unchanged(request, etag, int(facts.st_mtime)):
        request.setResponseCode(http.NOT_MODIFIED)
        return []
    headers.setRawHeaders(b"Accept-Ranges", [b"bytes"])
    kind = _content_type(path)
    size = facts.st_size
    chosen = None
    asked = request.head.first(b"range")
    if asked is not None and request.head.method == "GET" and request.head.first(b"if-range") in (None, etag, modified):
        chosen = parse_ranges(asked, size)
    pieces: list[_Piece] = [(0, size)] if size else []
    if chosen is not None:
        request.setResponseCode(http.PARTIAL_CONTENT)
        if len(chosen) > 1:
            pieces, kind = _multipart(chosen, kind, size)
        elif chosen:
            offset, length = chosen[0]
            headers.setRawHeaders(b"Content-Range", [_content_range(offset, length, size)])
            pieces = [chosen[0]]
        else:
            request.setResponseCode(http.REQUESTED_RANGE_NOT_SATISFIABLE)
            headers.setRawHeaders(b"Content-Range", [b"bytes */%d" % size])
            pieces = []
    headers.setRawHeaders(b"Content-Type", [kind])
    total = sum(len(piece) if isinstance(piece, bytes) else piece[1] for piece in pieces)
    headers.setRawHeaders(b"Content-Length", [b"%d" % total])
    return pieces


def _content_range(offset: int, length: int, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (offset, offset + length - 1, size)


def _multipart(chosen: list[tuple[int, int]], kind: bytes, size: int) -> tuple[list[_Piece], bytes]:
    """Several ranges in one body (RFC 9110 14.6): its pieces, and its type."""
    boundary = secrets.token_hex(16).encode("ascii")
    pieces: list[_Piece] = []
    for offset, length in chosen:
        content_range = _content_range(offset, length, size)
        pieces.append(b"\r\n--%b\r\nContent-Type: %b\r\nContent-Range: %b\r\n\r\n" % (boundary, kind, content_range))
        pieces.append((offset, length))
    pieces.append(b"\r\n--%b--\r\n" % boundary)
    return pieces, b"multipart/byteranges; boundary=" + boundary


def _unchanged(request: PlainRequest, etag: bytes, modified: int) -> bool:
    """Whether the client's copy is good (RFC 9110 13.1.2, 13.1.3, 13.2.2): tags win over dates."""
    tags = request.head.all(b"if-none-match")
    if tags:
        known = [tag.strip(b" \t").removeprefix(b"W/") for tag in b",".join(tags).split(b",")]
        return etag in known or b"*" in known
    since = request.head.first(b"if-modified-since")
    if since is None:
        return False
    try:
        return bool(http.stringToDatetime(since) >= modified)  # type: ignore[no-untyped-call]
    except (ValueError, OverflowError, IndexError):
        return False


@implementer(IPullProducer)
class _Sending:
    """Reads a file as fast as the client takes it. A file that has shrunk leaves the answer short, which ends it."""

    def __init__(self, request: PlainRequest, descriptor: int, pieces: list[_Piece]) -> None:
        self._request = request
        self._descriptor: int | None = descriptor
        self._blocks = self._read(descriptor, pieces)

    def resumeProducing(self) -> None:
        if self._descriptor is None:
            return
        block = next(self._blocks, b"")
        if block:
            self._request.write(block)  # type: ignore[no-untyped-call]
            return
        self.stopProducing()
        self._request.unregisterProducer()
        self._request.finish()  # type: ignore[no-untyped-call]

    def stopProducing(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    @staticmethod
    def _read(descriptor: int, pieces: list[_Piece]) -> Iterator[bytes]:
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            offset, left = piece
            while left:
                try:
                    block = os.pread(descriptor, min(left, READ_SIZE), offset)
                except OSError:
                    return
                if not block:
                    return
                yield block
                offset += len(block)
                left -= len(block)
