"""A backend of the scenarios: PyPI's ``websockets`` echoing each message, with its own name and process id behind it.

    python echo_server.py NAME PORT BACKLOG [CODE REASON]

It tells what happens on standard output, a JSON object a line: ``listening``, then ``probe`` and ``session`` as they
open. ``delay SECONDS`` on standard input makes it slow to answer opening handshakes from then on. SIGTERM closes all
its sessions with CODE and REASON and ends it; so does the end of standard input, without a word.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

PROBES = "wsrouter-check"


class Backend:
    """All of one process."""

    def __init__(self, name: str) -> None:
        self.who = f"{name} {os.getpid()}"
        self.delay = 0.0

    async def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Agree to the opening handshake, after a while."""
        if self.delay:
            await asyncio.sleep(self.delay)
        if request.path.partition("?")[0] != "/ws":
            return connection.respond(HTTPStatus.NOT_FOUND, "there is only /ws\n")
        return None

    def sign(self, connection: ServerConnection, request: Request, response: Response) -> None:
        """Tell the client who answers."""
        response.headers["X-Backend"] = self.who

    async def echo(self, connection: ServerConnection) -> None:
        """One session, or one probe."""
        assert connection.request is not None
        probe = connection.request.headers.get("User-Agent") == PROBES
        tell("probe" if probe else "session")
        try:
            async for message in connection:
                await connection.send(f"{message} {self.who}")
        except ConnectionClosed:
            pass


def tell(event: str, **fields: object) -> None:
    """Write one line."""
    print(json.dumps({"event": event, **fields}), flush=True)


async def main(name: str, port: int, backlog: int, code: int, reason: str) -> None:
    """Serve until a signal, or the end of standard input."""
    backend = Backend(name)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    async with serve(
        backend.echo,
        "127.0.0.1",
        port,
        process_request=backend.answer,
        process_response=backend.sign,
        compression=None,
        ping_interval=None,
        max_size=None,
        backlog=backlog,
    ) as server:
        orders = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        reading = asyncio.create_task(obey(orders, backend))
        tell("listening")
        await stopped.wait()
        reading.cancel()
        server.close(code=code, reason=reason)
        await server.wait_closed()


async def obey(orders: asyncio.StreamReader, backend: Backend) -> None:
    """Do as the scenario says."""
    while line := await orders.readline():
        _, _, seconds = line.partition(b" ")
        backend.delay = float(seconds)
        tell("delay")
    os._exit(0)  # the scenario is gone


if __name__ == "__main__":
    arguments = [*sys.argv[1:], "1001", ""]
    asyncio.run(main(arguments[0], int(arguments[1]), int(arguments[2]), int(arguments[3]), arguments[4]))
