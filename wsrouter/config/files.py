"""Paths -> absolute paths of files that are there and may be read; globs expanded. Only secrets are looked into."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from wsrouter.config import memory
from wsrouter.config.faults import BadValue, quoted

_SHORTEST_SECRET = 16


def readable_file(text: str, folder: Path) -> Path:
    """A file that exists and may be read; relative paths begin at ``folder``."""
    path = folder / text
    if memory.is_recalled(path):
        return path
    # os.path answers False for names that are too long or behind a closed folder, where pathlib raises.
    if not os.path.isfile(path):
        # A name may hold a comma, so lists of files go by line; who wrote commas is told.
        hint = " (one file or glob on each line)" if "," in text else ""
        raise BadValue(f"{quoted(text)} is {'not a file' if os.path.exists(path) else 'no file that exists'}{hint}")
    if not os.access(path, os.R_OK):
        raise BadValue(f"{quoted(text)} cannot be read (permission denied)")
    return path


def readable_files(text: str, folder: Path) -> tuple[Path, ...]:
    """The files that a glob matches, sorted; a name that exists as it is written is no glob."""
    if not glob.has_magic(text) or os.path.exists(folder / text):
        return (readable_file(text, folder),)
    found = memory.matches(folder, text, sorted(glob.glob(text, root_dir=folder)))
    if not found:
        raise BadValue(f"{quoted(text)} matches no file{' (one file or glob on each line)' if ',' in text else ''}")
    return tuple(readable_file(name, folder) for name in found)


def secret_file(text: str, folder: Path) -> bytes:
    """The content of a file, without outer blanks and newlines; 16 bytes at least, so that nobody guesses it."""
    path = readable_file(text, folder)
    try:
        secret = memory.read_bytes(path).strip()
    except OSError as error:
        raise BadValue(f"{quoted(text)} cannot be read ({error.strerror})") from None
    if len(secret) < _SHORTEST_SECRET:
        raise BadValue(f"{quoted(text)} holds {len(secret)} bytes (a secret has {_SHORTEST_SECRET} at least)")
    return secret


def static_folder(text: str, folder: Path) -> Path:
    """A directory that exists and may be listed and entered."""
    path = folder / text
    if memory.folder_is_recalled(path):
        return path
    if not os.path.isdir(path):
        raise BadValue(f"{quoted(text)} is {'not a directory' if os.path.exists(path) else 'no directory that exists'}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise BadValue(f"{quoted(text)} cannot be read (permission denied)")
    memory.folder_is_good(path)
    return path


def log_target(text: str, folder: Path) -> Path | str | None:
    """``-`` for the log stream, ``off`` (None), or a file that can be appended to or made."""
    if text == "off":
        return None
    if text == "-":
        return text
    path = folder / text
    if os.path.isdir(path):
        raise BadValue(f"{quoted(text)} is a directory (expected a file, - or off)")
    if not os.path.isdir(path.parent):
        raise BadValue(f"the directory of {quoted(text)} does not exist")
    # On a reload opening it tells, and the old file goes on being written.
    if not os.access(path if os.path.exists(path) else path.parent, os.W_OK) and not memory.is_serving():
        raise BadValue(f"{quoted(text)} cannot be written (permission denied)")
    return path
