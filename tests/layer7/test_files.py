from __future__ import annotations

import email
import http.client
import os
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from wsrouter.layer7.files import Files, Found, locate

Ask = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with something for every temptation."""
    root = tmp_path / "www"
    for folder in ("sub", "empty", ".git", ".well-known/acme", "sub/.hidden"):
        (root / folder).mkdir(parents=True)
    (root / "index.html").write_text("<h1>top</h1>")
    (root / "sub/index.html").write_text("sub")
    (root / "a.txt").write_bytes(bytes(range(100)))
    (root / "a b.txt").write_text("blank")
    (root / "ä.txt").write_text("umlaut")
    (root / ".git/config").write_text("secret")
    (root / ".env").write_text("secret")
    (root / "sub/.hidden/x").write_text("secret")
    (root / ".well-known/acme/token").write_text("token")
    (root / "zero").write_text("")
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "www2").mkdir()
    (tmp_path / "www2/x").write_text("secret")
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "outdir").symlink_to(tmp_path / "www2")
    (root / "git").symlink_to(root / ".git")
    (root / "inside").symlink_to(root / "a.txt")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "fifo")
    return root


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/", "index.html"),
        ("", "index.html"),
        ("/index.html", "index.html"),
        ("/sub/", "sub/index.html"),
        ("/sub/index.html", "sub/index.html"),
        ("sub/index.html", "sub/index.html"),
        ("/a%20b.txt", "a b.txt"),
        ("/%C3%A4.txt", "ä.txt"),
        ("/inside", "a.txt"),
        ("/.well-known/acme/token", ".well-known/acme/token"),
    ],
)
def test_a_path_leads_to_its_file(root: Path, path: str, file: str) -> None:
    assert locate(root, path) == Found(str(root / file))


def test_a_directory_without_its_slash_is_found_as_that(root: Path) -> None:
    assert locate(root, "/sub") == Found(None)


@pytest.mark.parametrize(
    "path",
    [
        "/missing",
        "/a.txt/",
        "/a.txt/x",
        "/empty/",
        "/../outside",
        "/sub/../../outside",
        "/%2e%2e/outside",
        "/..%2Foutside",
        "/sub%2Findex.html",
        "/sub%5Cindex.html",
        "/sub\\index.html",
        "/a.txt%00",
        "/a.txt%0",
        "/%zz",
        "/%FF",
        "//index.html",
        "/sub//index.html",
        "//etc/passwd",
        "/out",
        "/outdir/x",
        "/outdir",
        "/outdir/",
        "/git/config",
        "/git",
        "/.git/config",
        "/.git",
        "/%2Egit/config",
        "/.env",
        "/sub/.hidden/x",
        "/sub/.well-known",
        "/.",
        "/loop",
        "/" + "x" * 5000,
    ],
)
def test_nothing_else_is_found(root: Path, path: str) -> None:
    assert locate(root, path) is None


def test_a_missing_root_has_no_files(tmp_path: Path) -> None:
    assert locate(tmp_path / "none", "/x") is None


def test_a_root_that_is_a_link_is_followed_anew_each_time(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(root)
    assert locate(link, "/a.txt") == Found(str(root / "a.txt"))
    link.unlink()
    link.symlink_to(tmp_path / "www2")
    assert locate(link, "/x") == Found(str(tmp_path / "www2/x"))


@pytest.fixture
def ask(stage: Any, beside: Any, root: Path) -> Ask:
    """``await ask(path, method, fields)``: the response and its body."""
    files = Files(root)
    port = stage.serve(lambda request: files.serve(request, request.target.path)).getHost().port

    def talk(path: str, method: str = "GET", **fields: str) -> tuple[http.client.HTTPResponse, bytes]:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        client.request(method, path, headers={name.replace("_", "-"): value for name, value in fields.items()})
        response = client.getresponse()
        body = response.read()
        client.close()
        return response, body

    return lambda *arguments, **fields: beside(talk, *arguments, **fields)


async def test_a_file_comes_with_its_type_and_its_validators(ask: Ask) -> None:
    response, body = await ask("/a.txt")
    assert (response.status, body) == (200, bytes(range(100)))
    assert response.getheader("Content-Type") == "text/plain; charset=utf-8"
    assert response.getheader("Content-Length") == "100"
    assert response.getheader("X-Content-Type-Options") == "nosniff"
    assert response.getheader("Cache-Control") == "no-cache"
    assert response.getheader("Accept-Ranges") == "bytes"
    assert response.getheader("ETag")
    assert response.getheader("Last-Modified")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.html", "text/html; charset=utf-8"),
        ("x.js", "text/javascript; charset=utf-8"),
        ("x.CSS", "text/css; charset=utf-8"),
        ("x.json", "application/json"),
        ("x.tar.gz", "application/gzip"),
        ("x.woff2", "font/woff2"),
        ("x", "application/octet-stream"),
    ],
)
async def test_types_follow_the_name(ask: Ask, root: Path, name: str, kind: str) -> None:
    (root / name).write_text("x")
    response, _ = await ask(f"/{name}")
    assert response.getheader("Content-Type") == kind
    assert response.getheader("Content-Encoding") is None


async def test_head_tells_the_length_and_sends_nothing(ask: Ask) -> None:
    response, body = await ask("/a.txt", "HEAD", Range="bytes=0-1")
    assert (response.status, body, response.getheader("Content-Length")) == (200, b"", "100")


async def test_an_empty_file_is_served(ask: Ask) -> None:
    response, body = await ask("/zero")
    assert (response.status, body, response.getheader("Content-Length")) == (200, b"", "0")


async def test_other_methods_are_not_allowed(ask: Ask) -> None:
    response, _ = await ask("/a.txt", "DELETE")
    assert (response.status, response.getheader("Allow")) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("path", "location"), [("/sub", "/sub/"), ("/sub?x=1&y", "/sub/?x=1&y")], ids=["path", "query"]
)
async def test_a_directory_redirects_to_its_slash(ask: Ask, path: str, location: str) -> None:
    response, _ = await ask(path)
    assert (response.status, response.getheader("Location")) == (301, location)


async def test_a_redirect_never_leads_to_another_host(stage: Any, raw: Any, root: Path) -> None:
    (root / "evil.example").mkdir()
    port = stage.serve(lambda request: Files(root).serve(request, request.target.path.lstrip("/"))).getHost().port
    answer = await raw(port, b"GET //evil.example HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert b"\r\nLocation: /evil.example/\r\n" in answer


@pytest.mark.parametrize("path", ["/fifo", "/missing", "/.env", "/out"])
async def test_what_may_not_be_served_looks_missing(ask: Ask, path: str) -> None:
    response, body = await ask(path)
    assert (response.status, body) == (404, b"404 Not Found\n")


async def test_an_unreadable_file_looks_missing(ask: Ask, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: str, flags: int) -> int:
        if str(path).endswith("a.txt"):
            raise PermissionError
        return opened(path, flags)

    monkeypatch.setattr("wsrouter.layer7.files.os.open", refuse)
    response, _ = await ask("/a.txt")
    assert response.status == 404


async def test_a_good_copy_is_not_sent_again(ask: Ask, root: Path) -> None:
    response, _ = await ask("/a.txt")
    etag, modified = response.getheader("ETag"), response.getheader("Last-Modified")
    long_ago = formatdate(0, usegmt=True)
    for fields, status in [
        ({"If_None_Match": etag}, 304),
        ({"If_None_Match": f'"x", W/{etag}'}, 304),
        ({"If_None_Match": "*"}, 304),
        ({"If_None_Match": '"x"'}, 200),
        ({"If_Modified_Since": modified}, 304),
        ({"If_Modified_Since": long_ago}, 200),
        ({"If_Modified_Since": "nonsense"}, 200),
        ({"If_Modified_Since": ""}, 200),
        ({"If_None_Match": '"x"', "If_Modified_Since": modified}, 200),
        ({"If_None_Match": etag, "If_Modified_Since": long_ago}, 304),
    ]:
        response, body = await ask("/a.txt", **fields)
        assert (response.status, len(body)) == (status, 0 if status == 304 else 100), fields
        assert response.getheader("ETag") == etag


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "body"),
    [
        ("bytes=10-19", 206, "bytes 10-19/100", bytes(range(10, 20))),
        ("bytes=-500", 206, "bytes 0-99/100", bytes(range(100))),
        ("bytes=98-", 206, "bytes 98-99/100", b"bc"),
        ("bytes=100-", 416, "bytes */100", b""),
        ("lines=1-2", 200, None, bytes(range(100))),
    ],
)
async def test_a_range_is_served(ask: Ask, asked: str, status: int, content_range: str | None, body: bytes) -> None:
    response, got = await ask("/a.txt", Range=asked)
    assert (response.status, response.getheader("Content-Range"), got) == (status, content_range, body)


async def test_a_range_of_another_version_gets_the_whole(ask: Ask) -> None:
    response, _ = await ask("/a.txt")
    etag = response.getheader("ETag")
    assert (await ask("/a.txt", Range="bytes=0-0", If_Range=etag))[0].status == 206
    assert (await ask("/a.txt", Range="bytes=0-0", If_Range='"other"'))[0].status == 200


async def test_several_ranges_come_as_parts(ask: Ask) -> None:
    response, body = await ask("/a.txt", Range="bytes=65-66,-1")
    assert response.status == 206
    message = email.message_from_bytes(b"Content-Type: " + response.getheader("Content-Type").encode() + b"\n\n" + body)
    parts = message.get_payload()
    assert [part["Content-Range"] for part in parts] == ["bytes 65-66/100", "bytes 99-99/100"]
    assert [part.get_payload() for part in parts] == ["AB", "c"]


async def test_a_large_file_waits_for_a_slow_client(stage: Any, beside: Any, root: Path) -> None:
    content = os.urandom(8_000_000)
    (root / "large").write_bytes(content)
    files = Files(root)
    port = stage.serve(lambda request: files.serve(request, request.target.path))

    def begin() -> tuple[http.client.HTTPConnection, http.client.HTTPResponse, bytes]:
        client = http.client.HTTPConnection("127.0.0.1", port.getHost().port, timeout=20)
        client.request("GET", "/large")
        response = client.getresponse()
        return client, response, response.read(1000)

    client, response, first = await beside(begin)
    exchange = stage.factories[-1].connections[0].exchange
    assert exchange.sent < len(content)
    rest = await beside(response.read)
    client.close()
    assert first + rest == content


async def test_a_file_that_shrinks_ends_the_connection(stage: Any, raw: Any, root: Path) -> None:
    (root / "shrinking").write_bytes(b"x" * 1000)

    def handler(request: Any) -> None:
        register = request.registerProducer

        def shrink_first(*arguments: Any) -> None:
            os.truncate(root / "shrinking", 10)
            register(*arguments)

        request.registerProducer = shrink_first
        Files(root).serve(request, "/shrinking")

    port = stage.serve(handler).getHost().port
    answer = await raw(port, b"GET /shrinking HTTP/1.1\r\nHost: h\r\n\r\n")
    assert b"Content-Length: 1000\r\n" in answer or answer == b"<RESET>"
    assert answer.count(b"x") <= 10
    assert answer.endswith(b"<RESET>")


async def test_a_client_that_leaves_lets_go_of_the_file(stage: Any, beside: Any, root: Path) -> None:
    (root / "large").write_bytes(bytes(20_000_000))
    port = stage.serve(lambda request: Files(root).serve(request, "/large"))

    def leave() -> None:
        client = http.client.HTTPConnection("127.0.0.1", port.getHost().port, timeout=20)
        client.request("GET", "/large")
        client.getresponse().read(1000)
        client.close()

    await beside(leave)
    await stage.factories[-1].connections[0].gone


async def test_a_body_sent_with_a_get_is_dropped_and_the_connection_kept(stage: Any, raw: Any, root: Path) -> None:
    port = stage.serve(lambda request: Files(root).serve(request, request.target.path)).getHost().port
    first = b"GET /zero HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde"
    answer = await raw(port, first + b"GET /sub/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.endswith(b"\r\n\r\nsub")
