"""The clients of the scenarios: sessions that live and echo now and then, and new ones all the time.

    python load_client.py URL PAUSE

It obeys JSON objects on standard input, one a line, and tells what happens on standard output in the same form.

    {"do": "hold", "count": 100, "keep": true}      open sessions that live; ``keep``: another for each lost one
    {"do": "arrive", "rate": 20}                    so many new ones a second, each for one round; 0 ends it
    {"do": "pass", "count": 200, "at_once": 12}     so many for one round each, ``at_once`` at a time
    {"do": "leave", "count": 20}                    end so many of those that live; all without ``count``

    {"event": "try", "session": 7, "at": 0.0}
    {"event": "open", "session": 7, "kind": "held", "backend": "b1", "pid": 4711, "seconds": 0.01, "at": 0.0}
    {"event": "refuse", "session": 7, "status": 503, "retry_after": "1", "why": "...", "seconds": 0.01, "at": 0.0}
    {"event": "round", "session": 7, "echoed": 3}
    {"event": "ping", "session": 7}
    {"event": "end", "session": 7, "code": 1000, "reason": "", "sent": 12, "echoed": 12, "faults": [], "at": 0.0}

A round is a few messages at once, numbered, and their echoes. Each must come once, in order, and from the process that
has agreed to the session: all else is a fault. A session rests about PAUSE seconds between rounds. ``at`` is the time
of day, in seconds. The number of a session is the query of its request, so that the router's log names it, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode

#: The most opening handshakes at once, of those that are held.
AT_ONCE = 32
#: Far longer than the router may take.
OPEN_TIMEOUT = 30.0


class Connection(ClientConnection):
    """A connection that tells of the pings that come, which the library answers by itself."""

    number = 0

    def process_event(self, event: Any) -> None:
        """Something has come."""
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            tell("ping", session=self.number)


class Session:
    """One session: what was sent, what came back, and what was wrong with it."""

    def __init__(self, number: int, websocket: ClientConnection, who: str, chance: random.Random) -> None:
        self.number = number
        self.sent = self.echoed = 0
        self.faults: list[str] = []
        self.leaving = False
        self._websocket = websocket
        self._who = who
        self._chance = chance
        self._rest: asyncio.Timeout | None = None

    async def round(self) -> None:
        """A few messages and their echoes."""
        count = self._chance.randint(1, 3)
        for _ in range(count):
            self.sent += 1
            await self._websocket.send(str(self.sent))
        for _ in range(count):
            await self._receive()
        tell("round", session=self.number, echoed=self.echoed)

    async def rest(self, seconds: float) -> None:
        """Nothing was asked, so nothing may come."""
        try:
            async with asyncio.timeout(seconds) as self._rest:
                while True:
                    await self._receive()
        except TimeoutError:
            pass
        finally:
            self._rest = None

    def leave(self) -> None:
        """End it, behind the round that it is in."""
        self.leaving = True
        if self._rest is not None and not self._rest.expired():
            self._rest.reschedule(0)

    async def _receive(self) -> None:
        message = await self._websocket.recv()
        self.echoed += 1
        if self.echoed > self.sent or message != f"{self.echoed} {self._who}":
            self.faults.append(f"got {message!r} as echo {self.echoed} of {self.sent} from {self._who}")

    def end(self) -> None:
        """Tell how it ended."""
        tell(
            "end",
            session=self.number,
            code=self._websocket.close_code,
            reason=self._websocket.close_reason,
            sent=self.sent,
            echoed=self.echoed,
            faults=self.faults,
            at=time.time(),
        )


class Load:
    """All of them."""

    def __init__(self, url: str, pause: float) -> None:
        self._url = url
        self._pause = pause
        self._last = 0
        self._held: dict[int, Session] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._arriving: asyncio.Task[None] | None = None
        self._doors = asyncio.Semaphore(AT_ONCE)
        self._leaving = False
        self._chance = random.Random(1)

    def obey(self, order: dict[str, Any]) -> None:
        """Begin to do as the scenario says."""
        what = order.pop("do")
        if what == "hold":
            self._leaving = False
            for _ in range(order["count"]):
                self._begin(self._hold(order.get("keep", False)))
        elif what == "arrive":
            if self._arriving is not None:
                self._arriving.cancel()
                self._arriving = None
            if order["rate"]:
                self._arriving = self._begin(self._arrive(1 / order["rate"]))
        elif what == "pass":
            doors = asyncio.Semaphore(order["at_once"])
            for _ in range(order["count"]):
                self._begin(self._pass(doors))
        else:
            assert what == "leave", what
            self._leaving = "count" not in order
            for session in list(self._held.values())[: order.get("count")]:
                session.leave()
                self._held.pop(session.number)

    def _begin(self, life: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            tell("broken", why=repr(task.exception()))

    async def _hold(self, keep: bool) -> None:
        while not self._leaving:
            async with self._doors:
                opened = await self._open("held")
            if opened is not None:
                session, websocket = opened
                self._held[session.number] = session
                await self._live(session, websocket)
                self._held.pop(session.number, None)
                if session.leaving:
                    return
            if not keep:
                return
            if opened is None:
                await asyncio.sleep(self._pause)

    async def _live(self, session: Session, websocket: ClientConnection) -> None:
        try:
            while not session.leaving and not self._leaving:
                await session.round()
                if not session.leaving:
                    await session.rest(self._pause * self._chance.uniform(0.5, 1.5))
            await websocket.close()
        except ConnectionClosed:
            pass
        session.end()

    async def _arrive(self, every: float) -> None:
        while True:
            self._begin(self._pass())
            await asyncio.sleep(every)

    async def _pass(self, doors: asyncio.Semaphore | None = None) -> None:
        async with doors or asyncio.Semaphore():
            opened = await self._open("passing")
            if opened is None:
                return
            session, websocket = opened
            try:
                await session.round()
                await websocket.close()
            except ConnectionClosed:
                pass
            session.end()

    async def _open(self, kind: str) -> tuple[Session, ClientConnection] | None:
        self._last = number = self._last + 1
        tell("try", session=number, at=time.time())
        began = time.monotonic()
        more: dict[str, object] = {"status": None, "retry_after": None}
        try:
            websocket = await connect(
                f"{self._url}?{number}",
                compression=None,
                ping_interval=None,
                open_timeout=OPEN_TIMEOUT,
                proxy=None,
                create_connection=Connection,
            )
        except InvalidStatus as error:
            headers = error.response.headers
            more = {"status": error.response.status_code, "retry_after": headers.get("Retry-After")}
            why = repr(error)
        except (OSError, InvalidHandshake, ConnectionClosed, EOFError) as error:
            why = repr(error)
        else:
            assert isinstance(websocket, Connection)
            assert websocket.response is not None
            websocket.number = number
            who = websocket.response.headers["X-Backend"]
            name, pid = who.split()
            seconds = time.monotonic() - began
            tell("open", session=number, kind=kind, backend=name, pid=int(pid), seconds=seconds, at=time.time())
            return Session(number, websocket, who, self._chance), websocket
        tell("refuse", session=number, why=why, seconds=time.monotonic() - began, at=time.time(), **more)
        return None


def tell(event: str, **fields: object) -> None:
    """Write one line."""
    print(json.dumps({"event": event, **fields}), flush=True)


async def main(url: str, pause: float) -> None:
    """Obey until there are no more orders."""
    load = Load(url, pause)
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    tell("listening")
    while line := await orders.readline():
        load.obey(json.loads(line))
    os._exit(0)  # the scenario is gone


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
