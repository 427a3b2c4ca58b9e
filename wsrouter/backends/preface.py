"""The PROXY header that opens a connection to a backend where the pool says ``send_proxy``."""

from __future__ import annotations

from collections.abc import Sequence

from wsrouter.config.values import SendProxy
from wsrouter.wire.proxy_header import Address, Tlv, header_v1, header_v2


def proxy_preface(
    form: SendProxy, source: Address | None, destination: Address | None, tlvs: Sequence[Tlv] = ()
) -> bytes:
    """The header that tells a backend of a client at ``source`` that connected to ``destination``.

    None for either: what is not known is not claimed, the header says UNKNOWN or LOCAL. Version 1 has no room for
    ``tlvs``.
    """
    if form is SendProxy.V1:
        return header_v1(source, destination)
    return header_v2(source, destination, tlvs)
