from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from wsrouter.config import memory
from wsrouter.config.faults import BadValue
from wsrouter.config.files import log_target, readable_file, readable_files, secret_file, static_folder
from wsrouter.config.memory import FileMemory, is_serving, loadable, read_bytes


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Paths that this process may not touch, as if it were not root; what lies below them is closed too."""
    paths: set[Path] = set()

    def is_closed(path: Any) -> bool:
        return bool(paths & {Path(path), *Path(path).parents})

    def guarded(function: Any) -> Any:
        def call(path: Any, *arguments: Any, **more: Any) -> Any:
            if isinstance(path, str | Path) and is_closed(path):
                raise PermissionError(13, "Permission denied")
            return function(path, *arguments, **more)

        return call

    real_access, real_isfile, real_isdir = os.access, os.path.isfile, os.path.isdir
    monkeypatch.setattr(os, "stat", guarded(os.stat))
    monkeypatch.setattr(Path, "read_bytes", guarded(Path.read_bytes))
    monkeypatch.setattr(os, "access", lambda path, *a, **k: not is_closed(path) and real_access(path, *a, **k))
    monkeypatch.setattr(os.path, "isfile", lambda path: not is_closed(path) and real_isfile(path))
    monkeypatch.setattr(os.path, "isdir", lambda path: not is_closed(path) and real_isdir(path))
    return paths


def reading(held: FileMemory, *paths: Path) -> list[bytes]:
    held.begin()
    with held.reading():
        return [read_bytes(path) for path in paths]


def test_without_a_memory_files_are_just_read(tmp_path, closed):
    (tmp_path / "a").write_bytes(b"one")
    assert read_bytes(tmp_path / "a") == b"one"
    closed.add(tmp_path / "a")
    with pytest.raises(PermissionError):
        read_bytes(tmp_path / "a")


def test_a_file_that_is_closed_by_now_is_what_it_was(tmp_path, closed):
    held, path = FileMemory(), tmp_path / "a"
    path.write_bytes(b"one")
    assert reading(held, path) == [b"one"]
    held.commit()
    closed.add(path)
    assert reading(held, path, path) == [b"one"] * 2
    assert held.denied == [path]
    # And the next time too.
    held.commit()
    assert reading(held, path) == [b"one"]


def test_a_file_that_is_gone_is_gone(tmp_path):
    held, path = FileMemory(), tmp_path / "a"
    path.write_bytes(b"one")
    reading(held, path)
    held.commit()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        reading(held, path)


def test_what_a_refused_reload_has_read_does_not_count(tmp_path, closed):
    held, path = FileMemory(), tmp_path / "a"
    path.write_bytes(b"one")
    reading(held, path)
    held.commit()
    path.write_bytes(b"two")
    assert reading(held, path) == [b"two"]
    assert held.changed() == [path]
    closed.add(path)
    assert reading(held, path) == [b"one"]
    assert held.changed() == []


def test_a_file_that_is_not_used_any_more_is_forgotten(tmp_path, closed):
    held, path = FileMemory(), tmp_path / "a"
    path.write_bytes(b"one")
    reading(held, path)
    held.commit()
    reading(held)
    held.commit()
    closed.add(path)
    with pytest.raises(PermissionError):
        reading(held, path)


def test_a_start_knows_nothing_of_before(tmp_path, closed):
    held, path = FileMemory(), tmp_path / "a"
    path.write_bytes(b"one")
    closed.add(path)
    with pytest.raises(PermissionError):
        reading(held, path)
    with held.reading():
        assert not is_serving()
    held.commit()
    with held.reading():
        assert is_serving()
    assert not is_serving()


def test_openssl_gets_a_file_that_holds_what_is_remembered(tmp_path, closed):
    held, path = FileMemory(), tmp_path / "a"
    path.write_bytes(b"key")
    reading(held, path)
    held.commit()
    with held.reading(), loadable(path) as name:
        assert name == str(path)
    closed.add(path)
    with held.reading(), loadable(path) as name:
        assert name != str(path)
        with open(name, "rb") as file:
            assert file.read() == b"key"


def test_options_take_what_was_good_before(tmp_path, closed):
    held = FileMemory()
    keys, www = tmp_path / "keys", tmp_path / "www"
    for folder in (keys, www):
        folder.mkdir()
    for name in ("a.pem", "b.pem"):
        (keys / name).write_bytes(b"x" * 16)

    def options() -> list[Any]:
        held.begin()
        with held.reading():
            files = readable_files("keys/*.pem", tmp_path)
            for path in files:
                read_bytes(path)
            return [files, readable_file("keys/a.pem", tmp_path), secret_file("keys/a.pem", tmp_path),
                    static_folder("www", tmp_path)]  # fmt: skip

    before = options()
    held.commit()
    closed.update((keys, www))
    assert options() == before
    assert set(held.denied) == {keys / "a.pem", keys / "b.pem", www}
    with held.reading(), pytest.raises(BadValue):
        readable_file("keys/c.pem", tmp_path)


def test_one_closed_file_does_not_hide_that_another_is_gone(tmp_path, closed):
    held = FileMemory()
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).write_bytes(b"x")
    with held.reading():
        for path in readable_files("*.pem", tmp_path):
            read_bytes(path)
    held.commit()
    (tmp_path / "a.pem").unlink()
    closed.add(tmp_path / "b.pem")
    with held.reading():
        assert readable_files("*.pem", tmp_path) == (tmp_path / "b.pem",)


def test_a_log_that_cannot_be_written_is_a_fault_at_the_start_only(tmp_path, closed):
    held, path = FileMemory(), tmp_path / "log"
    path.touch()
    monkey_closed = path
    real = os.access

    def access(asked: Any, *arguments: Any, **more: Any) -> bool:
        return Path(asked) != monkey_closed and real(asked, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", access)
        with held.reading(), pytest.raises(BadValue):
            log_target("log", tmp_path)
        held.commit()
        with held.reading():
            assert log_target("log", tmp_path) == path


def test_the_memory_is_there_only_while_it_reads():
    assert memory._current.get() is None


# What another process has read.


def test_what_another_process_has_read_is_taken_whatever_is_on_disk(tmp_path):
    (tmp_path / "a.pem").write_bytes(b"one")
    (tmp_path / "b.pem").write_bytes(b"two")
    (tmp_path / "www").mkdir()
    (tmp_path / "r.ini").write_bytes(b"text")
    first = FileMemory()
    with first.reading():
        memory.read_text(tmp_path / "r.ini")
        for path in readable_files("*.pem", tmp_path):
            read_bytes(path)
        static_folder("www", tmp_path)
    first.commit()
    (tmp_path / "a.pem").write_bytes(b"another")
    (tmp_path / "b.pem").unlink()
    (tmp_path / "c.pem").write_bytes(b"new")
    (tmp_path / "www").rmdir()
    (tmp_path / "r.ini").unlink()
    other = FileMemory()
    other.give(first.in_force)
    with other.reading():
        assert memory.read_text(tmp_path / "r.ini") == b"text"
        files = readable_files("*.pem", tmp_path)
        assert [path.name for path in files] == ["a.pem", "b.pem"]
        assert [read_bytes(path) for path in files] == [b"one", b"two"]
        assert static_folder("www", tmp_path) == tmp_path / "www"
        with loadable(tmp_path / "b.pem") as name:
            assert Path(name).read_bytes() == b"two"
    assert other.denied == []
    other.commit()
    assert other.in_force == first.in_force


def test_what_another_process_reads_anew_has_changed_here_too(tmp_path):
    (tmp_path / "a.pem").write_bytes(b"one")
    first, other = FileMemory(), FileMemory()
    for content in (b"one", b"two"):
        (tmp_path / "a.pem").write_bytes(content)
        reading(first, tmp_path / "a.pem")
        first.commit()
        other.give(first.in_force)
        assert reading(other, tmp_path / "a.pem") == [content]
        assert other.changed() == ([] if content == b"one" else [tmp_path / "a.pem"])
        other.commit()
