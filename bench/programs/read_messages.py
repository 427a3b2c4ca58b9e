"""A mitmproxy addon that reads each WebSocket message: what a filter would have to do at least.

Run by mitmproxy's own interpreter, and not imported by the benchmark.
"""

from typing import Any


def websocket_message(flow: Any) -> None:
    """Read the newest message; forget the older ones, which mitmproxy would keep as long as the session lives."""
    messages = flow.websocket.messages
    messages[-1].content.find(b"\0")
    del messages[:-1]
