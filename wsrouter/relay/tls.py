"""A leg with TLS on it: OpenSSL over memory BIOs, from the first byte of the handshake.

The context is chosen before the handshake (on a client leg from the sniffed server name), so nothing is
switched inside OpenSSL's callbacks.

All legs share two BIOs, which are empty between any two calls. A pair for each would keep the room that its longest
flight or message once needed: 3 KB for an idle leg, ten times that behind a long message. What a read cannot take in
stays with its leg and comes first in its next read; it raises no event, so a leg that is resumed reads once by itself.

TLS has no half-close here: the end of writing is a close_notify and the end of the leg.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from socket import SocketType
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.error import ConnectionAborted, ConnectionLost

from wsrouter.relay.leg import BUFFER, BUFFER_SIZE, FEW, OPEN, VIEW, Coupled, Leg, Readable, Writable, views
from wsrouter.relay.loop import Relay

if TYPE_CHECKING:
    from wsrouter.relay.pump import Pump

#: The longest record in clear (RFC 8446 5.1).
RECORD_SIZE: Final = 16 * 1024
#: Ciphertext is read in pieces of two records: what they hold, and the record that the last piece began, fit a read.
_CIPHER_SIZE: Final = 33 * 1024
_CIPHER: Final = bytearray(_CIPHER_SIZE)
_CIPHER_VIEW: Final = memoryview(_CIPHER)
_CIPHER_VIEWS: Final = views(_CIPHER_VIEW)
#: What OpenSSL reads from, and what it writes to, for all legs.
_INCOMING: Final = ssl.MemoryBIO()
_OUTGOING: Final = ssl.MemoryBIO()
#: How much OpenSSL may have to say to a peer that does not read, in bytes.
OWED_LIMIT: Final = 16 * 1024


def reason_of(error: Exception) -> str:
    """What went wrong in a handshake, in few words, for the log: ``certificate verify failed: ...``."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate does not verify: {error.verify_message}"
    # The types say that it is always there.
    reason: str | None = getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError) and reason:
        return reason.replace("_", " ").lower()
    if isinstance(error, ConnectionAborted):
        return "aborted"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _forget() -> None:
    """Drop what a failed call has left in the BIOs: it must not reach another leg."""
    _INCOMING.read()
    _OUTGOING.read()


class TlsLeg(Leg):
    """A connection with TLS. Made on a connected socket; ``handshake`` comes first, then ``attach`` or ``couple``."""

    __slots__ = (
        "_begun",
        "_buffered",
        "_done",
        "_failed",
        "_late",
        "_outward",
        "_owed",
        "_rest",
        "tls",
    )

    def __init__(
        self,
        relay: Relay,
        sock: SocketType,
        peername: object,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
    ) -> None:
        #: The TLS object: its version, cipher, ALPN choice and peer certificate can be asked for.
        self.tls = context.wrap_bio(_INCOMING, _OUTGOING, server_side=server_side, server_hostname=server_hostname)
        # The relay learns of the leg only now: OpenSSL refuses some names.
        super().__init__(relay, sock, peername)
        #: A read would tell something without anything more of the peer's.
        self._buffered = False
        #: What was read from the socket, and OpenSSL has not been given yet.
        self._rest = b""
        #: OpenSSL was given more than made up the last plaintext: perhaps the beginning of a record.
        self._begun = False
        #: What the next read raises.
        self._late: Exception | None = None
        #: Bytes of OpenSSL's own that wait behind other pending ones.
        self._owed = 0
        self._done: Callable[[], None] | None = None
        self._failed: Callable[[str], None] | None = None
        self._outward: Pump | None = None

    def handshake(self, done: Callable[[], None], failed: Callable[[str], None], prefetch: bytes = b"") -> None:
        """Do the handshake, ``prefetch`` being what was read of it already.

        Either ``done`` is called, and the leg can be attached or coupled; or ``failed`` with the reason, and the leg
        ends by itself (the peer gets the alert). Neither is called after ``abortConnection``.
        """
        self._done, self._failed = done, failed
        self.read = self._read_handshake
        self.is_reading = True
        self._watch_wishes()
        self._step(prefetch)

    # Handshake.

    def _read_handshake(self) -> None:
        try:
            count = self.socket.recv_into(_CIPHER)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if count:
            self._step(_CIPHER_VIEW[:count])
        else:
            self.eof = True
            self._fail(ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "unexpected EOF while reading"))

    def _step(self, data: bytes | memoryview) -> None:
        self.relay.heavy += 1
        try:
            _INCOMING.write(data)
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush_outgoing()
            return
        except OSError as error:
            _INCOMING.read()
            self._flush_outgoing()
            self._fail(error)
            return
        except BaseException:
            _forget()
            raise
        # Application data may have come with the last flight.
        self._rest = _INCOMING.read()
        self._buffered = bool(self._rest)
        self._flush_outgoing()
        if self._state is not OPEN:
            return
        done, self._done, self._failed = self._done, None, None
        self.is_reading = False
        self._watch_wishes()
        assert done is not None
        done()

    def _fail(self, error: Exception) -> None:
        failed, self._done, self._failed = self._failed, None, None
        if failed is not None:
            failed(reason_of(error))
        if self._state is OPEN:
            super().loseConnection()

    def abortConnection(self) -> None:
        """See Leg.abortConnection; a handshake that runs is forgotten."""
        self._done = self._failed = None
        super().abortConnection()

    def _tell_lost(self, error: Exception | None) -> None:
        failed, self._done, self._failed = self._failed, None, None
        self._outward = None
        super()._tell_lost(error)
        if failed is not None:
            failed(reason_of(error or ConnectionLost()))

    # Joining.

    def couple(self, coupling: Coupled, outward: Pump, inward: Pump) -> None:
        """See Leg.couple."""
        super().couple(coupling, outward, inward)
        self._outward = outward
        self.read = self._read_for_pump
        self._drain_later()

    def readable(self) -> Readable:
        """See Leg.readable."""
        return self

    def writable(self) -> Writable:
        """See Leg.writable."""
        return self

    # Reading.

    def recv_into(self, buffer: bytearray, /) -> int:
        """What was sent in clear, as of a non-blocking socket: all whole records of a piece, and more of full ones."""
        more = False
        if not self._buffered:
            count = self.socket.recv_into(_CIPHER)
            if not count:
                return 0
            fresh: bytes | memoryview = _CIPHER_VIEWS[count] if count < FEW else _CIPHER_VIEW[:count]
            more = count == _CIPHER_SIZE
        else:
            fresh, self._rest = self._rest, b""
        try:
            _INCOMING.write(fresh)
            if self._late is not None:
                error, self._late = self._late, None
                try:
                    raise error
                finally:
                    del error
            # The types of ``read`` do not know that it returns a number when it is given a buffer.
            tls: Any = self.tls
            size: int = tls.read(BUFFER_SIZE, buffer)
            self._buffered = self._begun = False
            if (_INCOMING.pending and size) or (more and size == RECORD_SIZE):
                size = self._read_on(buffer, size, more)
        except ssl.SSLWantReadError:
            self._buffered = False
            self._begun = True
            self._flush_outgoing()
            raise BlockingIOError from None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._buffered = False
            size = 0
        except ssl.SSLError:
            self._buffered = False
            _INCOMING.read()
            self._flush_outgoing()  # the alert
            raise
        except BaseException:
            _forget()
            raise
        if _INCOMING.pending:
            rest = _INCOMING.read()
            if size:  # behind the end nothing counts: what lies there would be read for ever
                self._rest = rest
                self._buffered = True
        if _OUTGOING.pending:
            self._flush_outgoing()
        return size

    def _read_on(self, buffer: bytearray, size: int, more: bool) -> int:
        """Put what follows behind the first ``size`` bytes, since one large write costs less than several.

        ``more``: the socket had as much as was asked for, so that behind a full record there may be another. Returns
        the new size; an error is kept for the next read.
        """
        room = memoryview(buffer)
        tls: Any = self.tls
        last = size
        while last and size <= BUFFER_SIZE - RECORD_SIZE:
            fresh = not _INCOMING.pending
            try:
                if fresh:
                    if last != RECORD_SIZE or not more:
                        break
                    count = self.socket.recv_into(_CIPHER)
                    if not count:
                        break  # the end comes again
                    _INCOMING.write(_CIPHER_VIEW[:count])
                    more = count == _CIPHER_SIZE
                last = tls.read(RECORD_SIZE, room[size:])
            except ssl.SSLWantReadError:
                self._begun = True
                if fresh:
                    break  # so much without a byte of the peer's: others get their turn
                continue
            except BlockingIOError:
                break
            except OSError as error:
                # Without its traceback, which would hold this leg in a cycle.
                self._late = error.with_traceback(None)
                self._buffered = True
                break
            self._begun = False
            size += last
        if not last:
            self._buffered = True  # close_notify: told again
        return size

    def _read_for_pump(self) -> None:
        pump = self._outward
        while pump is not None:
            pump.run()
            if not self._buffered or pump.paused or self._state is not OPEN:
                return
            pump = self._outward

    def _read_for_protocol(self) -> None:
        while self._state is OPEN and self.is_reading and self.coupling is None:
            try:
                count = self.recv_into(BUFFER)
            except BlockingIOError:
                return
            except OSError as error:
                self.lose(error)
                return
            if not count:
                self._end_of_input()
                return
            protocol = self.protocol
            assert protocol is not None
            protocol.dataReceived(VIEW[:count].tobytes())
            if not self._buffered:
                return

    def has_unread(self) -> bool:
        """See Leg.has_unread; a message of TLS's own, such as a session ticket, may count as well."""
        return self._buffered or self._begun or super().has_unread()

    def await_end(self) -> None:
        """See Leg.await_end; a reset may have been noticed already."""
        super().await_end()
        if self._late is not None and not isinstance(self._late, ssl.SSLError):
            self.relay.later(functools.partial(self.lose, self._late))

    def resumeProducing(self) -> None:
        """Read on; what OpenSSL holds comes first, and raises no event of its own."""
        super().resumeProducing()
        self._drain_later()

    def _drain_later(self) -> None:
        if self._buffered and self._state is OPEN:
            self.relay.later(self._drain)

    def _drain(self) -> None:
        if self._buffered and self.is_reading and self._state is OPEN:
            try:
                self.read()
            except Exception:
                self.relay.fail(self)

    # Writing.

    def write(self, data: bytes) -> None:
        """See Leg.write."""
        if data and self._takes_bytes():
            try:
                records = b"".join(self._sealed(memoryview(data)))
            except OSError as error:
                self.lose(error)
                return
            self._push(records)

    def finish_writing(self) -> None:
        """There is no half-close in TLS here: this is the end of the leg."""
        self.loseConnection()

    def send(self, data: memoryview, /) -> int:
        """Seal and send all of ``data``, as ``Writable.send`` says."""
        if len(data) <= RECORD_SIZE:
            record = self._seal(data)
            size = len(record)
            try:
                sent = self.socket.send(record)
            except BlockingIOError:
                sent = 0
            if sent != size:
                self.hold(memoryview(record)[sent:])
                return -1
        else:
            several = self._sealed(data)
            size = sum(map(len, several))
            try:
                sent = self.socket.sendmsg(several)
            except BlockingIOError:
                sent = 0
            if sent != size:
                self.hold(memoryview(b"".join(several))[sent:])
                return -1
        return len(data)

    def _sealed(self, data: memoryview) -> list[bytes]:
        """``data`` as records."""
        return [self._seal(data[start : start + RECORD_SIZE]) for start in range(0, len(data), RECORD_SIZE)]

    def _seal(self, data: memoryview) -> bytes:
        """One record."""
        try:
            self.tls.write(data)  # a BIO takes all that it is given
            return _OUTGOING.read()
        except BaseException:
            _forget()
            raise

    def _flush_outgoing(self) -> None:
        """Send what OpenSSL says of its own accord: handshake, alerts, tickets, key updates."""
        records = _OUTGOING.read()
        if records and self._state is OPEN:
            if self.pending is None:
                self._owed = 0
            else:
                # A peer that asks for key updates and never reads would let these grow without end.
                self._owed += len(records)
                if self._owed > OWED_LIMIT:
                    self.lose(ConnectionAborted(), reset=True)
                    return
            self._push(records)

    # The end.

    def _say_goodbye(self) -> None:
        try:
            self.tls.unwrap()
        except OSError:
            pass  # close_notify lies in the BIO; the peer's own is not waited for
        goodbye = _OUTGOING.read()
        if goodbye:
            try:
                self.socket.send(goodbye)
            except OSError:
                pass  # congested or gone: then the peer sees the FIN alone
