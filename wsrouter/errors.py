"""The errors that one part of the router raises and another turns into an answer.

Each says what was got, what was expected, and whose fault it is; none carries a traceback to a peer.
"""

from __future__ import annotations


def words_of(error: OSError) -> str:
    """What the kernel says went wrong, as part of a sentence: ``no such file or directory``."""
    return (error.strerror or str(error)).lower()


class RouterError(Exception):
    """The base of every error that the router raises on purpose."""


class ListenError(RouterError):
    """A port cannot be bound; ``number`` is the kernel's reason (``errno``), where it was the kernel."""

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.number = number


class ConfigError(RouterError):
    """The configuration, or a file that it names, cannot be used.

    ``faults`` holds one printable line for each fault, in the order of the file.
    """

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class SniffError(RouterError):
    """The first bytes of a connection are malformed; ``alert`` is the TLS alert that says so (RFC 8446 6.2)."""

    def __init__(self, reason: str, alert: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.alert = alert


class HttpError(RouterError):
    """A request that is refused: ``status`` and the ``headers`` its answer needs; ``reason`` is for the log.

    The reason is the router's own text and may be shown to the client; input is never echoed in it.
    """

    def __init__(self, status: int, reason: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.headers = headers


class BackendError(RouterError):
    """A backend could not be used; ``status`` is what the client gets (design: 502, 503, 504)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class DialError(RouterError):
    """One attempt to reach one backend failed; another backend may be tried.

    ``timed_out`` tells a silent backend (504) from one that refused (503) or whose TLS failed (``nonsense``, 502). One
    that was ``cut_short`` did not get its whole time: nothing is held against the backend.
    """

    def __init__(
        self, reason: str, *, timed_out: bool = False, nonsense: bool = False, cut_short: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.timed_out = timed_out
        self.nonsense = nonsense
        self.cut_short = cut_short


class FrameError(RouterError):
    """A peer broke RFC 6455; ``code`` is the close code that tells it so (section 7.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
