"""A TLS client for tests that have to stop, or to say something odd, between its records."""

from __future__ import annotations

import ssl


class TlsByHand:
    """A TLS client whose records the test carries itself."""

    def __init__(self, peer, context: ssl.SSLContext, name: str | None) -> None:
        self.peer = peer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)

    def take(self, step, *arguments) -> bytes:
        """Do one step as far as it goes, and return the records that it makes."""
        try:
            step(*arguments)
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read()

    def handshake(self) -> None:
        """Do the rest of the handshake."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(self.peer.socket.recv(65536))
            else:
                self.flush()
                return

    def last_flight(self) -> bytes:
        """The client's end of the handshake (TLS 1.3), for the test to send."""
        flight = b""
        while not flight:
            self.incoming.write(self.peer.socket.recv(65536))
            flight = self.take(self.tls.do_handshake)
        return flight

    def flush(self) -> None:
        if self.outgoing.pending:
            self.peer.send(self.outgoing.read())

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                data += self.tls.read(count - len(data))
            except ssl.SSLWantReadError:
                received = self.peer.socket.recv(65536)
                assert received, data
                self.incoming.write(received)
        return data
