"""Bytes on the wire, without a socket: HTTP heads, targets and bodies, RFC 6455 handshake and frames."""
