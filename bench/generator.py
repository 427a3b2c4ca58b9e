"""The load generator: built from ``load/`` when it is first needed, then called for each reading."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
SOURCES = sorted((HERE / "load").glob("*.[ch]"))
MAIN_SOURCE = HERE / "load" / "load.c"
FLAGS = ("-O2", "-Wall", "-Wextra")


class BenchError(Exception):
    """A reading could not be taken; the text says why."""


@dataclass(frozen=True, slots=True)
class Generator:
    """The built binary; ``tls`` tells whether it can speak wss; ``cpu`` is the one it is bound to."""

    binary: Path
    tls: bool
    cpu: int

    def run(self, mode: str, **options: object) -> dict[str, Any]:
        """Run to the end and return the results. Raises BenchError with the generator's own words."""
        with started(self._command(mode, options), {self.cpu}) as process:
            out, errors = process.communicate()
        if process.returncode:
            raise BenchError(errors.decode().strip() or f"the load generator ended with {process.returncode}")
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    @contextmanager
    def holding(self, **options: object) -> Iterator[None]:
        """Within the block, so many idle sessions are open. Raises BenchError when they do not come about."""
        with started(self._command("idle", options), {self.cpu}) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            if not process.stdout.readline():
                raise BenchError(process.communicate()[1].decode().strip())
            yield
            errors = process.communicate(b"\n")[1]
            if process.returncode:
                raise BenchError(errors.decode().strip())

    def _command(self, mode: str, options: dict[str, object]) -> list[str]:
        words = [str(self.binary), mode]
        for name, value in options.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
            elif value is not False:
                words += [option, str(value)]
        return words


def build(cpu: int) -> Generator:
    """Compile the generator, unless this very source was compiled before. Without OpenSSL's headers it lacks wss.

    Raises BenchError when there is no C compiler, or it fails.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise BenchError("a C compiler is needed (cc) to build the load generator")
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in SOURCES)).hexdigest()[:12]
    folder = _build_folder()
    first_error = ""
    for tls, extra in ((True, ("-DWITH_TLS", "-lssl", "-lcrypto")), (False, ())):
        binary = folder / f"load-{digest}-{'tls' if tls else 'plain'}"
        if binary.exists():
            return Generator(binary, tls, cpu)
        unfinished = binary.with_suffix(f".{os.getpid()}")
        command = [compiler, *FLAGS, "-o", str(unfinished), str(MAIN_SOURCE), *extra]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode == 0:
            unfinished.replace(binary)
            return Generator(binary, tls, cpu)
        first_error = first_error or result.stderr
    raise BenchError(f"the load generator does not compile:\n{first_error}")


def _build_folder() -> Path:
    """``bench/build``, which git ignores; a folder of the user's own under the temporary one if that is read-only."""
    folder = HERE / "build"
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"wsrouter-bench-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise BenchError(f"{folder} belongs to somebody else") from None
    return folder


@contextmanager
def started(command: list[str], cpus: set[int], output: IO[bytes] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A child process on some CPUs, in a process group of its own, which is gone when the block ends, however it ends.

    A child inherits the affinity of who starts it, so this process moves over for a moment. ``output`` takes both
    output streams; without it they are pipes.
    """
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if output else subprocess.PIPE,
            stdout=output or subprocess.PIPE,
            stderr=output or subprocess.PIPE,
            start_new_session=True,
        )
    finally:
        os.sched_setaffinity(0, own)
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    try:
        os.killpg(process.pid, 9)  # workers that outlived their parent; the group is ours alone
    except ProcessLookupError:
        pass
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
