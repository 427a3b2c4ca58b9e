"""A Python 2.7, which is all that the test suite runs on.

Whoever has one has it under one of its names, in the variable PYTHON2, or among pyenv's versions. Debian has not since
release 11, but the packages of that release still run on later ones: so on Debian they are fetched by apt, which checks
their signatures, and unpacked into a folder. Nothing is installed, and nobody need be root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_RELEASE = "bullseye"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
#: The interpreter, what its ssl and ctypes modules need that later releases lack, and headers to compile with.
_PACKAGES = (
    *("python2.7-minimal", "libpython2.7-minimal", "libpython2.7-stdlib", "libpython2.7-dev"),
    *("libssl1.1", "libffi7"),
)


class Unavailable(Exception):
    """The suite cannot be had here; the text says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """``path`` runs, with ``variables`` besides those of this process, and with them pip can compile for it."""

    path: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """All variables to run it with."""
        return {**os.environ, **self.variables}


def find(folder: Path) -> Interpreter:
    """One that is there, or else one from Debian's packages, unpacked into ``folder``; raises Unavailable."""
    named = os.environ.get("PYTHON2")
    if named is not None:
        path = Path(shutil.which(named) or named)
        if not _runs(path):
            raise Unavailable(f"PYTHON2={named} is no Python 2.7 that runs")
        return Interpreter(path)
    for path in _candidates():
        if _runs(path):
            return Interpreter(path)
    return _from_debian(folder)


def _candidates() -> Iterator[Path]:
    for name in ("python2.7", "python2"):
        path = shutil.which(name)
        if path is not None:
            yield Path(path)
    # Those that pyenv has, but not for this folder: its python2.7 in the search path only says so.
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob("versions/2.7*/bin/python2.7"))


def _runs(path: Path, environment: dict[str, str] | None = None) -> bool:
    """Whether it is a Python 2.7 that pip can work with."""
    check = "import ssl, sys, zlib; sys.exit(sys.version_info[:2] != (2, 7))"
    try:
        return not subprocess.run([path, "-c", check], env=environment, capture_output=True, check=False).returncode
    except OSError:
        return False


def _from_debian(folder: Path) -> Interpreter:
    """Fetch and unpack; an apt of its own lists and cache, with the mirror that this machine uses anyway."""
    help_text = "there is no Python 2.7, which the Autobahn test suite needs: name one with PYTHON2=..."
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb") or not _KEYRING.exists():
        raise Unavailable(f"{help_text} (on Debian it would be fetched)")
    mirrors = _output("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    mirror = next((one for one in mirrors if one.rstrip("/").endswith("/debian")), None)
    if mirror is None:
        raise Unavailable(f"{help_text} (apt knows no mirror of Debian to fetch it from)")
    for name in ("lists/partial", "cache/archives/partial", "packages", "root"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {mirror} {_RELEASE} main\n")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]
    _output(*apt, "update")
    _output(*apt, "download", *_PACKAGES, cwd=folder / "packages")
    for package in sorted((folder / "packages").glob("*.deb")):
        _output("dpkg-deb", "-x", str(package), str(folder / "root"))
    unpacked = folder / "root" / "usr"
    (libraries,) = {path.parent for path in unpacked.glob("lib/*/libssl.so.1.1")}
    headers = unpacked / "include"
    found = Interpreter(
        unpacked / "bin" / "python2.7",
        {"LD_LIBRARY_PATH": str(libraries), "CPATH": f"{headers / 'python2.7'}:{headers}"},
    )
    if not _runs(found.path, found.environment):
        raise Unavailable(f"{help_text} (the one of Debian's packages does not run here)")
    return found


def _output(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:1] + command[-1:])} failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout
