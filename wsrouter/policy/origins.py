"""Whether the page that opens a WebSocket may do so (RFC 6455 section 10.2)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

#: Stands in a list of allowed origins for the request's own.
SAME: Final = "same"

_DEFAULT_PORTS: Final = {"http:": ":80", "https:": ":443"}


def origin_allowed(origins: tuple[str, ...] | None, origin: list[bytes], scheme: str, authority: str) -> bool:
    """Tell whether a request with these Origin fields may pass.

    ``origins`` are the allowed ones in lower case, None for no check. ``origin`` holds the value of each Origin field.
    ``scheme`` (``http`` or ``https``, for a WebSocket too) and ``authority`` (the Host field) are the request's own,
    which ``same`` stands for. A request without the field passes: browsers always send it, and nobody else is bound by
    it. More than one is refused. ``null``, which any sandboxed page or local file sends, passes only if it is named.
    Case and a scheme's default port make no difference (RFC 6454 section 4).
    """
    if origins is None or not origin:
        return True
    if len(origin) > 1:
        return False
    got = _normal(origin[0].decode("latin-1"))
    return got in _listed(origins) or (SAME in origins and got == _normal(f"{scheme}://{authority}"))


# Keyed by configuration alone: what clients send never fills the cache.
@lru_cache(maxsize=256)
def _listed(origins: tuple[str, ...]) -> frozenset[str]:
    return frozenset(_normal(origin) for origin in origins if origin != SAME)


def _normal(origin: str) -> str:
    origin = origin.lower()
    port = _DEFAULT_PORTS.get(origin.partition("//")[0])
    return origin.removesuffix(port) if port else origin
