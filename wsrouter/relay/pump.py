"""One direction of a coupling: what it reads from its source leg it writes to its sink leg at once.

This is the hot path of the router: everything a relayed message costs beyond the kernel's work happens in
``run``. It reads into one buffer that the whole process shares, lets the frame walker look at the frame
headers (a ``FramePump`` only), and sends. When the kernel refuses a part, the sink keeps that part and the
pump stops reading until it is gone.

Behind a long read a pump between two plain legs goes over to ``splice``: bytes that nobody looks at stay in the kernel,
and of a long frame only the header is read. What comes in small pieces is copied again.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import MSG_MORE, SocketType
from typing import Any, Final, Protocol, cast

from wsrouter.relay.leg import BUFFER, BUFFER_SIZE, FEW, VIEW, VIEWS, Coupled, Leg, Readable, Writable
from wsrouter.relay.splice import UNABLE, WORTH, Conduit
from wsrouter.wire.frames import HEADER_LIMIT, WHOLE, FrameWalker


class Coupling(Coupled, Protocol):
    """What owns two pumps: a tunnel, a session."""

    def source_ended(self, pump: Any) -> None:
        """The pump's source sent its FIN; all that came before it has been passed on or is pending."""

    def frames_event(self, pump: FramePump) -> None:
        """A Close frame or a violation was met; what came before it has been passed on."""


class _Nowhere:
    """Takes everything."""

    def send(self, data: memoryview, /) -> int:
        return len(data)


_NOWHERE: Final = _Nowhere()


class Pump:
    """Relays bytes as they are."""

    #: For the compiler: what ``del`` may take away.
    __deletable__ = ["coupling", "source", "sink", "_input", "_output"]
    # Sockets, not their methods: one of these, bound and kept, takes 80 bytes, and two pumps would keep four.
    __slots__ = ("_input", "_output", "_splicing", "bytes", "coupling", "failure", "paused", "sink", "source")

    def __init__(self, coupling: Coupling, source: Leg, sink: Leg) -> None:
        self.coupling = coupling
        self.source = source
        #: None once nothing more is wanted by the sink.
        self.sink: Leg | None = sink
        #: Bytes read from the source so far.
        self.bytes = 0
        self.paused = False
        #: Why the sink takes no more.
        self.failure: OSError | None = None
        #: The last read was a long one, and the next may do without reading.
        self._splicing = False
        # Both are sockets nearly always, and then without a call.
        self._input: Readable = source.socket if type(source) is Leg else source.readable()
        self._output: Writable = sink.socket if type(sink) is Leg else sink.writable()

    def run(self) -> None:
        """The source is readable."""
        if self.paused:
            return  # by an earlier event of the same batch
        if self._splicing:
            self._splicing = self._splice(BUFFER_SIZE) >= WORTH // 2
            return
        try:
            count = self._input.recv_into(BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            self.source.lose(error)
            return
        if not count:
            self.source.stop_reading()
            self.coupling.source_ended(self)
            return
        self.bytes += count
        if count >= WORTH:
            self._splicing = self._may_splice()
        self._pass_on(VIEWS[count] if count < FEW else VIEW[:count])

    def _may_splice(self) -> bool:
        """Whether both sides are sockets as they are, and bytes are wanted."""
        return type(self.source) is Leg and type(self.sink) is Leg and self.source.relay.conduit is not None

    def _splice(self, most: int) -> int:
        """Move up to ``most`` bytes from the source to the sink within the kernel; returns how many were taken."""
        conduit, sink = self.source.relay.conduit, self.sink
        if conduit is None or sink is None or sink.pending is not None:
            return 0  # the event comes again
        try:
            count = conduit.take(self.source.fd, most)
        except BlockingIOError:
            count = 0
        except OSError as error:
            if error.errno in UNABLE:
                self.source.relay.copy_all()
                count = 0
            else:
                self.source.lose(error)
                return 0
        if not count:
            # The event comes again. What is unread is told by reading alone: urgent data stops splice, and looks to it
            # like nothing or like the end (tcp(7), "Out-of-band data").
            return 0
        self.bytes += count
        try:
            self._fill(sink, conduit, count)
        except BaseException:
            # What may lie in the pipe must reach nobody.
            self.source.relay.copy_all()
            raise
        return count

    def _fill(self, sink: Leg, conduit: Conduit, count: int) -> None:
        """Splice what was taken into the sink; it keeps what the kernel does not take."""
        try:
            given = conduit.give(sink.fd, count)
        except OSError as error:
            conduit.rest(count)
            self._send_failed(error)
            return
        if given != count:
            sink.hold(conduit.rest(count - given))
            self.pause()

    def inject(self, data: bytes) -> None:
        """Pass on bytes that were read from the source before the coupling."""
        self.bytes += len(data)
        self._pass_on(memoryview(data))

    def _pass_on(self, view: memoryview, flags: int = 0) -> None:
        """Give ``view`` to the sink; ``flags`` are for the socket of a plain leg."""
        sink = self.sink
        if sink is None:
            return  # diverted
        if sink.pending is not None:
            sink.write(bytes(view))
            self.pause()
            return
        try:
            sent = cast(SocketType, self._output).send(view, flags) if flags else self._output.send(view)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._send_failed(error)
            return
        if sent != len(view):
            if sent >= 0:
                sink.hold(view[sent:])
            self.pause()

    def _send_failed(self, error: OSError) -> None:
        """The sink takes no more, but its last words may lie unread in the kernel: let it read up to its own end."""
        # The error was told once, and not again: what the sink reads at its end may look like a FIN.
        self.failure = error
        sink, self.sink = self.sink, None
        self._output = _NOWHERE
        if sink is not None and not sink.is_reading:
            sink.lose(error)

    def dissolve(self) -> None:
        """The coupling has ended: let go of it, and of both legs, so that no cycle is left to collect."""
        del self.coupling, self.source, self.sink, self._input, self._output

    def pause(self) -> None:
        """The sink is congested: stop reading the source."""
        if not self.paused:
            self.paused = True
            self.source.pauseProducing()

    def resume(self) -> None:
        """The sink has room again."""
        if self.paused:
            self.paused = False
            self.source.resumeProducing()


class FramePump(Pump):
    """Relays RFC 6455 frames and knows where they begin and end."""

    __slots__ = ("_walk", "walker")

    def __init__(self, coupling: Coupling, source: Leg, sink: Leg, walker: FrameWalker) -> None:
        Pump.__init__(self, coupling, source, sink)  # ``super`` takes three times as long
        self.walker = walker
        #: What walks in the walker's place, None for the walker itself.
        self._walk: Callable[[bytes | bytearray, int], int] | None = None

    def run(self) -> None:
        """The source is readable.

        This repeats ``Pump.run`` with the walker in it, and what ``FrameWalker.walk`` does first, because calls cost
        here.
        """
        if self.paused:
            return
        if self._splicing:
            self._splicing = self._run_long()
            return
        try:
            count = self._input.recv_into(BUFFER)
        except BlockingIOError:
            return
        except OSError as error:
            self.source.lose(error)
            return
        if not count:
            self.source.stop_reading()
            self.coupling.source_ended(self)
            return
        walker = self.walker
        self.bytes += count
        if walker.held:
            self._walk_bytes(walker.held + BUFFER[:count])
            return
        if (
            self._walk is None
            and not walker.skip
            and walker.small[BUFFER[1]] == count  # if one byte came alone this is an old one, but no frame has one
            and walker.kinds[BUFFER[0]] == WHOLE
        ):
            walker.messages += 1
            if count > walker.record:
                walker.record = count
            end = count
            view = VIEWS[count]
        else:
            end = walker.walk(BUFFER, count) if self._walk is None else self._walk(BUFFER, count)
            view = VIEWS[end] if end < FEW else VIEW[:end]
            if count >= WORTH and (walker.skip >= WORTH or (not walker.skip and BUFFER[1] & 0x7F > 125)):
                # Within a long frame, or behind one that came alone: another may follow.
                self._splicing = self._may_splice()
        if end:
            try:
                sent = self._output.send(view)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._send_failed(error)
                sent = end
            if sent != end:
                if sent >= 0 and self.sink is not None:
                    self.sink.hold(VIEW[sent:end])
                self.pause()
        if walker.event:
            self._event(BUFFER, end, count)

    def _run_long(self) -> bool:
        """Read no more than the header of a long frame, and splice the rest; tells whether to go on like that."""
        walker, sink = self.walker, self.sink
        if walker.held or sink is None or sink.pending is not None:
            return False  # the event comes again
        if not walker.skip:
            try:
                count = cast(SocketType, self._input).recv_into(BUFFER, HEADER_LIMIT)
            except BlockingIOError:
                return False
            except OSError as error:
                self.source.lose(error)
                return False
            if not count:
                return False  # the end comes again
            self.bytes += count
            end = self._walked(BUFFER, count)
            if end:
                # What begins a long frame makes one packet with what comes behind it.
                self._pass_on(VIEW[:end], MSG_MORE if walker.skip >= WORTH else 0)
            if walker.event:
                self._event(BUFFER, end, count)
            if walker.event or walker.skip < WORTH or self.paused:
                return False
        count = self._splice(min(walker.skip, BUFFER_SIZE))
        # Of payload the walker wants to know no more than how much it was.
        self._walked(BUFFER, count)
        return count >= WORTH // 2 or not walker.skip

    def _may_splice(self) -> bool:
        """See Pump._may_splice; what walks in the walker's place wants to see all."""
        return self._walk is None and super()._may_splice()

    def inject(self, data: bytes) -> None:
        """Walk and pass on bytes that were read from the source before the coupling."""
        self.bytes += len(data)
        self._walk_bytes(self.walker.held + data)

    def activity(self, *, data: bool) -> int:
        """A number that grows with every frame of the source's, or with messages only: with ``data``."""
        return self.bytes - self.walker.control_bytes - len(self.walker.held) if data else self.bytes

    @property
    def at_boundary(self) -> bool:
        """Whether what the sink was given so far ends with a whole frame, so that a frame may be put in."""
        return not self.walker.skip

    def stop_at_boundary(self) -> None:
        """Pass on the rest of the frame under way, then report a ``frames_event`` and drop what follows.

        Call it only when the pump is not at a boundary.
        """
        self._splicing = False
        self._walk = self._walk_to_boundary

    def divert(self) -> None:
        """Give the sink nothing more; frames are still walked, to see the source's Close."""
        self._splicing = False
        self._walk = None
        self._output = _NOWHERE
        self.sink = None
        self.resume()

    def _walk_to_boundary(self, data: bytes | bytearray, count: int) -> int:
        walker = self.walker
        skip = walker.skip
        if count < skip:
            return walker.walk(data, count)
        walker.walk(data, skip)
        self._walk = None
        if count > skip:
            walker.walk(data[skip:count], count - skip)
        walker.event = True
        return skip

    def _walked(self, data: bytes | bytearray, count: int) -> int:
        """See FrameWalker.walk."""
        return self.walker.walk(data, count) if self._walk is None else self._walk(data, count)

    def _walk_bytes(self, data: bytes | bytearray) -> None:
        end = self._walked(data, len(data))
        if end:
            self._pass_on(memoryview(data)[:end])
        if self.walker.event:
            self._event(data, end, len(data))

    def _event(self, data: bytes | bytearray, passed: int, end: int) -> None:
        """The walker has stopped at ``passed`` of ``data[:end]``."""
        self.coupling.frames_event(self)
