"""Close codes, and the control frames that the router itself sends (RFC 6455 5.5 and 7.4)."""

from __future__ import annotations

import functools
from typing import Final

from wsrouter.errors import FrameError

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
#: Never on the wire: the Close frame held no code.
NO_STATUS: Final = 1005
#: Never on the wire: TCP ended without a Close frame.
ABNORMAL: Final = 1006
INVALID_TEXT: Final = 1007
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
RESTART: Final = 1012
TRY_AGAIN: Final = 1013

#: Longest payload of a control frame, in bytes (RFC 6455 5.5).
CONTROL_LIMIT: Final = 125

_FIN_CLOSE: Final = 0x88
_FIN_PING: Final = 0x89


def valid_code(code: int) -> bool:
    """Tell whether a Close frame may carry this code (RFC 6455 7.4, and 1012-1014 of the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def apply_mask(payload: bytes, mask: bytes) -> bytes:
    """Mask or unmask a control frame's payload with a key of 4 bytes; the same step does both (RFC 6455 5.3)."""
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


def close_frame(code: int, reason: str = "", mask: bytes | None = None) -> bytes:
    """Build a whole Close frame (RFC 6455 5.5.1).

    ``mask`` is a fresh random key of 4 bytes for a frame towards a backend, None towards a client. ``NO_STATUS``
    gives an empty payload, so that what ``parse_close`` returned can be passed on. A reason of more than 123 bytes
    of UTF-8 is cut at a character: an end must not fail over its text. Raises ValueError for a code that must not be
    sent, a reason without a code, or a mask of another size.
    """
    if code == NO_STATUS and not reason:
        return _control_frame(_FIN_CLOSE, b"", mask)
    if not valid_code(code):
        raise ValueError(f"got close code {code}, expected 1000-1003, 1007-1014 or 3000-4999")
    text = reason.encode()
    if len(text) > CONTROL_LIMIT - 2:
        text = text[: CONTROL_LIMIT - 2].decode(errors="ignore").encode()
    return _control_frame(_FIN_CLOSE, code.to_bytes(2, "big") + text, mask)


def ping_frame(payload: bytes, mask: bytes | None = None) -> bytes:
    """Build a whole Ping frame (RFC 6455 5.5.2); ``mask`` as for ``close_frame``.

    Raises ValueError for a payload of more than 125 bytes, or a mask of another size.
    """
    if len(payload) > CONTROL_LIMIT:
        raise ValueError(f"got a ping payload of {len(payload)} bytes, expected at most {CONTROL_LIMIT}")
    return _control_frame(_FIN_PING, payload, mask)


# Nearly all are 1000, 1001 or empty.
@functools.lru_cache(maxsize=64)
def parse_close(payload: bytes) -> tuple[int, str]:
    """Read the unmasked payload of a Close frame: its code and reason (RFC 6455 5.5.1, 7.4).

    An empty payload gives ``(NO_STATUS, "")``. Raises FrameError: 1002 for a single byte or a code that must not be
    on the wire, 1007 for a reason that is not UTF-8.
    """
    if not payload:
        return NO_STATUS, ""
    if len(payload) == 1:
        raise FrameError(PROTOCOL_ERROR, "got a Close payload of 1 byte, expected none or at least 2")
    code = payload[0] << 8 | payload[1]
    if not valid_code(code):
        raise FrameError(PROTOCOL_ERROR, f"got close code {code}, expected 1000-1003, 1007-1014 or 3000-4999")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_TEXT, "got a close reason that is not UTF-8") from None


def _control_frame(first: int, payload: bytes, mask: bytes | None) -> bytes:
    if mask is None:
        return bytes((first, len(payload))) + payload
    if len(mask) != 4:
        raise ValueError(f"got a mask of {len(mask)} bytes, expected 4")
    return bytes((first, 0x80 | len(payload))) + mask + apply_mask(payload, mask)
