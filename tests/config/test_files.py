from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsrouter.config import files
from wsrouter.config.faults import BadValue


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tls").mkdir()
    for name in ("b.pem", "a.pem", "c.txt", "[x].pem"):
        (tmp_path / "tls" / name).write_text("")
    return tmp_path


def test_a_file_is_found_from_the_folder_or_by_its_absolute_path(folder: Path) -> None:
    assert files.readable_file("tls/a.pem", folder) == folder / "tls/a.pem"
    assert files.readable_file(str(folder / "tls/a.pem"), Path("/")) == folder / "tls/a.pem"


def test_a_glob_is_expanded_and_sorted(folder: Path) -> None:
    found = tuple(folder / "tls" / name for name in ("[x].pem", "a.pem", "b.pem"))
    assert files.readable_files("tls/*.pem", folder) == found
    assert files.readable_files(f"{folder}/tls/?.pem", Path("/")) == found[1:]


def test_a_name_that_exists_as_written_is_no_glob(folder: Path) -> None:
    assert files.readable_files("tls/[x].pem", folder) == (folder / "tls/[x].pem",)
    assert files.readable_files("tls/a.pem", folder) == (folder / "tls/a.pem",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope.pem", "'nope.pem' is no file that exists"),
        ("tls", "'tls' is not a file"),
        ("a.pem, b.pem", "'a.pem, b.pem' is no file that exists (one file or glob on each line)"),
        ("*.pem", "'*.pem' matches no file"),
        ("*.pem, x", "'*.pem, x' matches no file (one file or glob on each line)"),
        ("t*", "'tls' is not a file"),
        ("x" * 5000, "no file that exists"),
    ],
)
def test_what_matches_no_file_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        files.readable_files(text, folder)
    assert message in str(caught.value)


def test_a_static_folder_must_be_there(folder: Path) -> None:
    assert files.static_folder("tls", folder) == folder / "tls"
    with pytest.raises(BadValue, match="'www' is no directory that exists"):
        files.static_folder("www", folder)
    with pytest.raises(BadValue, match=r"'tls/a\.pem' is not a directory"):
        files.static_folder("tls/a.pem", folder)


def test_a_secret_is_the_content_of_a_file_without_outer_blanks(folder: Path) -> None:
    (folder / "secret").write_bytes(b"  0123456789abcdef\xff\n")
    assert files.secret_file("secret", folder) == b"0123456789abcdef\xff"
    (folder / "secret").write_bytes(b"0123456789abcde\n")
    with pytest.raises(BadValue, match=r"'secret' holds 15 bytes \(a secret has 16 at least\)"):
        files.secret_file("secret", folder)
    with pytest.raises(BadValue, match="'nope' is no file that exists"):
        files.secret_file("nope", folder)


def test_a_secret_that_fails_while_it_is_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(BadValue, match=r"'tls/a\.pem' cannot be read \(Input/output error\)"):
        files.secret_file("tls/a.pem", folder)


def test_an_access_log_is_a_file_the_log_stream_or_off(folder: Path) -> None:
    assert files.log_target("off", folder) is None
    assert files.log_target("-", folder) == "-"
    assert files.log_target("new.log", folder) == folder / "new.log"
    assert files.log_target("tls/c.txt", folder) == folder / "tls/c.txt"
    with pytest.raises(BadValue, match="'tls' is a directory"):
        files.log_target("tls", folder)
    with pytest.raises(BadValue, match=r"the directory of 'logs/new\.log' does not exist"):
        files.log_target("logs/new.log", folder)


def test_what_the_process_may_not_touch_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BadValue, match=r"'tls/a\.pem' cannot be read"):
        files.readable_file("tls/a.pem", folder)
    with pytest.raises(BadValue, match="'tls' cannot be read"):
        files.static_folder("tls", folder)
    with pytest.raises(BadValue, match=r"'new\.log' cannot be written"):
        files.log_target("new.log", folder)
