"""The programs of a run: their output is kept, and looked at."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from pathlib import Path

#: How long a start, or an end, may take, in seconds.
PATIENCE = 30.0


class StartError(Exception):
    """A program did not start; the text says how it ended."""


class Program:
    """A process whose output goes to a file, and line by line to ``heard``."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, heard: Callable[[str], None]) -> None:
        self._process = process
        self._log = log
        self._heard = heard
        self._waiting: list[tuple[re.Pattern[str], asyncio.Future[str]]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("w") as log:
            async for line in self._process.stdout:
                text = line.decode(errors="replace")
                log.write(text)
                log.flush()
                self._heard(text)
                for pattern, found in self._waiting:
                    match = pattern.search(text)
                    if match and not found.done():
                        found.set_result(match[1])

    async def find(self, pattern: str) -> str:
        """What the group in the pattern holds in the first line that matches; raises StartError if it ends before."""
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((re.compile(pattern), found))
        await asyncio.wait((found, self._reader), timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise StartError(self._last_words())
        return found.result()

    async def listening(self, port: int) -> None:
        """Wait until it takes connections; raises StartError if it ends before."""
        async with asyncio.timeout(PATIENCE):
            while not self._reader.done():
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return
        raise StartError(self._last_words())

    async def ended(self) -> int:
        """Wait for its end: the status."""
        # Who waits may be cancelled, but then the output is read on: it must still be ended.
        await asyncio.wait((self._reader,))
        return await self._process.wait()

    async def stop(self) -> int:
        """End it, if it has not ended: the status."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self.ended()
            except TimeoutError:
                self._process.kill()
        return await self.ended()

    def _last_words(self) -> str:
        return f"it did not start: {self._log} ends with {self._log.read_text()[-300:]!r}"
