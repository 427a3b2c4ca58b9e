"""Tells systemd how the router is (sd_notify(3)), so that ``Type=notify-reload`` knows when it serves and reloads."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from twisted.logger import Logger

_log = Logger()


class Notifier:
    """Sends states to the socket that ``NOTIFY_SOCKET`` names; without one it does nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")

    def ready(self, status: str) -> None:
        """It serves, from the start or again; ``status`` is shown by ``systemctl status``."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """It reads its configuration; ``ready`` must follow, however that ends."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """It drains."""
        self._send("STOPPING=1", "STATUS=draining")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the abstract namespace (unix(7)).
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as out:
                out.sendto("\n".join(assignments).encode(), address)
        except (OSError, ValueError) as error:
            _log.warn("systemd cannot be told {what}: {error}", what=assignments[0], error=error)
