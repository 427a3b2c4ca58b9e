"""Reloads under load: not one session is cut, not one opening handshake is refused, and memory stays flat.

RELOADS=100 makes it the long one (``make soak``), with its figures printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from tests.integration.process import FOREGROUND
from tests.memory import resident

RELOADS = int(os.environ.get("RELOADS", "20"))
#: Sessions that live through all of it, and how many clients open new ones without end.
SESSIONS = 30
OPENERS = 3
#: How long one reload may take, in seconds.
PATIENCE = 20.0
#: By how much resident memory may have grown, in bytes, since the reloads have settled.
GROWTH = 4 << 20


class Load:
    """Clients of the router, and what they saw."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.opened = 0
        self.messages = 0
        self.failures: list[str] = []
        self.over = asyncio.Event()

    async def live(self, number: int) -> None:
        """One session from the first reload to the last."""
        try:
            async with connect(self._url, compression=None) as session:
                self.opened += 1
                while not self.over.is_set():
                    await self._echo(session, f"session {number}: {self.messages}")
                    await asyncio.sleep(0.02)
        except Exception as error:
            self.failures.append(f"session {number}: {error!r}")

    async def open(self) -> None:
        """One new session after the other."""
        while not self.over.is_set():
            try:
                async with connect(self._url, compression=None) as session:
                    self.opened += 1
                    await self._echo(session, "new")
            except Exception as error:
                self.failures.append(f"opening: {error!r}")
            await asyncio.sleep(0.005)

    async def go_round(self) -> None:
        """Wait until as many messages have passed as every session needs for its turn, or something failed."""
        messages = self.messages
        end = time.monotonic() + PATIENCE
        while self.messages < messages + 2 * SESSIONS and not self.failures:
            assert time.monotonic() < end, self.failures
            await asyncio.sleep(0.01)

    @property
    def _url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/app"

    async def _echo(self, session: Any, text: str) -> None:
        await session.send(text)
        assert await session.recv() == text
        self.messages += 1


class Storm:
    """A router, and a file for it that is another one each time."""

    def __init__(self, folder: Path, port: int, backends: list[int]) -> None:
        self.folder = folder
        self.port = port
        self.backends = backends
        self.log = folder / "router.log"
        self.write(0)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*FOREGROUND, "wsrouter", "--config", "router.ini"],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def write(self, number: int) -> None:
        """The configuration of one reload; every third is broken."""
        lines = [
            "[router]",
            "access_log = off",
            f"[listener {('main', 'front')[number % 2]}]",
            f"endpoint = tcp:{self.port}:interface={('127.0.0.1', '0.0.0.0')[number // 4 % 2]}",
            f"max_connections = {10_000 + number}",
            f"[route app{number % 5}]",
            "path = /app",
            f"pool = app{number // 2 % 3}",
            f"[pool app{number // 2 % 3}]",
            "backends =",
            *(f"    127.0.0.1:{port}" for port in self.backends[number % 3 :]),
        ]
        if number % 2:
            lines += ["[listener other]", f"endpoint = unix:{self.folder}/{number}.sock"]
        if is_broken(number):
            lines += ["balanse = first", "[rout x]"]
        (self.folder / "router.ini").write_text("\n".join(lines) + "\n")

    async def until(self, words: str, times: int = 1) -> None:
        end = time.monotonic() + PATIENCE
        while self.log.read_text().count(words) < times:
            assert time.monotonic() < end, self.log.read_text()
            await asyncio.sleep(0.01)


def is_broken(number: int) -> bool:
    return number % 3 == 2


async def echo(session: ServerConnection) -> None:
    async for message in session:
        await session.send(message)


@contextlib.asynccontextmanager
async def storming(folder: Path) -> AsyncIterator[tuple[Storm, Load]]:
    """A router with backends, under load."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(serve(echo, "127.0.0.1", 0, compression=None)) for _ in range(4)]
        storm = Storm(folder, port, [next(iter(server.sockets)).getsockname()[1] for server in servers])
        try:
            await storm.until("listening on")
            load = Load(port)
            async with asyncio.TaskGroup() as tasks:
                for number in range(SESSIONS):
                    tasks.create_task(load.live(number))
                for _ in range(OPENERS):
                    tasks.create_task(load.open())
                yield storm, load
                load.over.set()
        finally:
            storm.process.terminate()
            status = storm.process.wait(PATIENCE)
        assert status == 0, storm.log.read_text()


async def storm_through(folder: Path) -> None:
    good = broken = 0
    async with storming(folder) as (storm, load):
        memory = []
        await load.go_round()
        for number in range(1, RELOADS + 1):
            storm.write(number)
            storm.process.send_signal(signal.SIGHUP)
            if is_broken(number):
                broken += 1
                await storm.until("reload refused", broken)
            else:
                good += 1
                await storm.until("reloaded: ", good)
            await load.go_round()
            memory.append(resident(storm.process.pid))
    told = storm.log.read_text()
    if "RELOADS" in os.environ:
        print(
            f"\n{good} reloads and {broken} refused, {load.opened} sessions, {load.messages} messages, memory {memory}"
        )
    assert load.failures == []
    assert "Traceback" not in told
    assert "cannot be" not in told
    settled = len(memory) // 4
    assert memory[-1] - memory[settled] < GROWTH, memory


def test_nobody_is_cut_and_nobody_is_refused(tmp_path: Path) -> None:
    asyncio.run(storm_through(tmp_path))
