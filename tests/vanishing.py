"""Peers that vanish without a word, as one whose cable is pulled does: no FIN, no reset, no acknowledgement."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Any

# asm-generic/socket.h; the socket module has no names for them.
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27


def vanish(peer: Any) -> None:
    """From here on nothing reaches ``peer.socket``, and nothing comes from it: a socket filter drops every packet."""
    # One instruction of classic BPF, BPF_RET | BPF_K with 0: keep no byte of any packet (socket(7)).
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0), 8)
    peer.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))


def reappear(peer: Any) -> None:
    """Whatever comes for ``peer.socket`` reaches it again; what has come since it vanished is lost."""
    peer.socket.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
