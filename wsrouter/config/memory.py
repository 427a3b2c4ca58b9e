"""What the files of a configuration held when they were read last, for a process that may read them no more.

A router that was started as root reads its keys and then becomes another user. A reload reads them again, as that user,
and may be refused. What was good before is then used again, and the operator is told; files that can be read, or that
are gone, are taken as they are.

A process can also be given what another one has read, and then reads nothing itself: workers run on exactly the files
that their supervisor has found good.

The readers of options are plain functions in a table and know nothing of reloads. So the memory stands around them, in
a context variable, while files are read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Reading:
    """What one reading of the configuration has found."""

    #: The configuration itself.
    text: bytes = b""
    #: What it names.
    contents: dict[Path, bytes] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)
    #: Folder and pattern -> the names that it matched.
    globs: dict[tuple[Path, str], tuple[str, ...]] = field(default_factory=dict)


class FileMemory:
    """The files of the configuration in force, and those of one that is being read.

    ``begin`` a reading, do it ``with memory.reading():`` (as often as need be), and ``commit`` it when it is in force.
    ``denied`` then holds the paths that could not be read and are remembered.
    """

    def __init__(self) -> None:
        self._kept = Reading()
        self._fresh = Reading()
        #: What another process has read, if this one reads nothing itself.
        self._given: Reading | None = None
        #: A configuration is in force.
        self.serving = False
        self.denied: list[Path] = []

    def begin(self) -> None:
        """Another reading begins; what the last one found without being committed is forgotten."""
        self._fresh = Reading()
        self.denied = []

    def give(self, reading: Reading) -> None:
        """Files are as ``reading`` says from now on, whatever is on disk."""
        self._given = reading

    @property
    def _known(self) -> Reading:
        """What can be recalled."""
        return self._kept if self._given is None else self._given

    @property
    def in_force(self) -> Reading:
        """What the configuration in force has read."""
        return self._kept

    def commit(self) -> None:
        """What was read is in force; what it did not need is forgotten."""
        self._kept = self._fresh
        self.serving = True

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Files that are read in here are remembered, and recalled where they are closed by now."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def changed(self) -> list[Path]:
        """The files in force whose content differs from what this reading has found."""
        kept = self._kept.contents
        return sorted(path for path, data in self._fresh.contents.items() if path in kept and kept[path] != data)

    # What the functions below use.

    def note(self, path: Path) -> None:
        if path not in self.denied and self._given is None:
            self.denied.append(path)

    def text(self, path: Path) -> bytes:
        """The configuration itself, which is never recalled."""
        self._fresh.text = path.read_bytes() if self._given is None else self._given.text
        return self._fresh.text

    @property
    def gives(self) -> bool:
        """Another process has read the files."""
        return self._given is not None

    def given(self, path: Path) -> bytes:
        """What another process has read at ``path``; FileNotFoundError if it has not."""
        data = self.recall(path)
        if data is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return data

    def keep(self, path: Path, data: bytes) -> None:
        self._fresh.contents[path] = data

    def recall(self, path: Path) -> bytes | None:
        """What ``path`` held, if that is known."""
        data = self._known.contents.get(path)
        if data is not None:
            self.note(path)
            self.keep(path, data)
        return data

    def recalls(self, path: Path) -> bool:
        """Whether the configuration in force has read the file at ``path``, and it is closed by now."""
        return path in self._known.contents and (self._given is not None or _closed(path, os.R_OK))

    def keep_folder(self, path: Path) -> None:
        self._fresh.folders.add(path)

    def recall_folder(self, path: Path) -> bool:
        if path not in self._known.folders or not (self._given is not None or _closed(path, os.R_OK | os.X_OK)):
            return False
        self.note(path)
        self.keep_folder(path)
        return True

    def matched(self, folder: Path, pattern: str, names: list[str]) -> list[str]:
        """What a pattern matched, with those of its last matches that are closed by now."""
        recalled = self._known.globs.get((folder, pattern), ())
        if self._given is not None:
            names = []
        found = sorted({*names, *(name for name in recalled if self.recalls(folder / name))})
        self._fresh.globs[folder, pattern] = tuple(found)
        return found


_current: ContextVar[FileMemory | None] = ContextVar("the files of the configuration", default=None)


def read_bytes(path: Path) -> bytes:
    """The content of a file; OSError as usual, unless it is closed by now and what it held is remembered."""
    memory = _current.get()
    if memory is None:
        return path.read_bytes()
    if memory.gives:
        return memory.given(path)
    try:
        data = path.read_bytes()
    except PermissionError:
        recalled = memory.recall(path)
        if recalled is None:
            raise
        return recalled
    memory.keep(path, data)
    return data


def read_text(path: Path) -> bytes:
    """The content of the configuration itself; OSError as usual."""
    memory = _current.get()
    return path.read_bytes() if memory is None else memory.text(path)


def is_recalled(path: Path) -> bool:
    """Whether the file cannot, or need not, be read any more, and ``read_bytes`` gives what it held."""
    memory = _current.get()
    return memory is not None and memory.recalls(path)


def folder_is_recalled(path: Path) -> bool:
    """Whether a folder, used so far, cannot be looked into any more."""
    memory = _current.get()
    return memory is not None and memory.recall_folder(path)


def folder_is_good(path: Path) -> None:
    """A folder was found as it must be."""
    memory = _current.get()
    if memory is not None:
        memory.keep_folder(path)


def matches(folder: Path, pattern: str, names: list[str]) -> list[str]:
    """What ``pattern`` matched below ``folder``: ``names``, and what is hidden by now."""
    memory = _current.get()
    return names if memory is None else memory.matched(folder, pattern, names)


def is_serving() -> bool:
    """Whether this is a reload."""
    memory = _current.get()
    return memory is not None and memory.serving


@contextmanager
def loadable(path: Path) -> Iterator[str]:
    """The name of a file that holds what ``path`` holds, for OpenSSL, which reads keys from files only."""
    if not is_recalled(path):
        yield str(path)
        return
    # A file without a name, in memory.
    descriptor = os.memfd_create("recalled", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(read_bytes(path))
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _closed(path: Path, mode: int) -> bool:
    """Whether ``path``, or a folder on the way to it, is there and closed to this process."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return not os.access(path, mode, effective_ids=True)
