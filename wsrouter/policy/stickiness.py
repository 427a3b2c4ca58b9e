"""Sticky sessions: a cookie that names the backend a client was sent to, so that its next session goes there too.

The name is a hash of the backend's label, the same on every machine with the same configuration; no address is shown.
With a ``secret`` it is keyed, so nobody else can compute it, and a client cannot make up the name of a backend that it
was not sent to. That is all the signing there is: a cookie that means a backend equals what the router would write.
Without one, whoever guesses a backend's label and the pool's name can compute it.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

from wsrouter.config.values import SameSite, Sticky
from wsrouter.policy.members import Member

#: 96 bits: not to be guessed, and 16 letters without padding.
_ID_SIZE = 12
_BLANKS = b" \t"


class StickyCookie:
    """Reads and writes the cookie of one pool.

    Members of weight 0 and backups are known too: a client that has their cookie was sent there once. Whether a member
    takes another session is for the caller to ask.
    """

    __slots__ = ("_ends", "_id_of", "_ids", "_members", "_name", "ages")

    def __init__(self, sticky: Sticky, pool_name: str, members: Sequence[Member]) -> None:
        self._name = sticky.cookie.encode()
        #: Whether browsers forget the cookie after a time.
        self.ages = sticky.max_age is not None
        self._id_of = partial(_id, sticky.secret, pool_name)
        self._ids = {member: self._id_of(member.label) for member in members}
        self._members = {text: member for member, text in self._ids.items()}
        #: What follows the id, on connections without TLS and with.
        self._ends = (_attributes(sticky, secure=False), _attributes(sticky, secure=True))

    def member_of(self, cookie: bytes) -> Member | None:
        """Return the member that the value of a Cookie field names; None without our cookie or with an unknown one.

        The first cookie of our name counts: browsers send the most specific one first (RFC 6265 5.4). Blanks
        around and quotes of a value do not. The work is in proportion to the length, which the head's limits bound.
        """
        value = cookie_value(cookie, self._name)
        return None if value is None else self._members.get(value)

    def set_cookie(self, member: Member, secure: bool) -> bytes:
        """Return the value of the Set-Cookie field that names ``member`` (RFC 6265 4.1).

        ``secure`` tells whether the client's connection has TLS.
        """
        # One that a reload has added may serve a client that came before.
        text = self._ids.get(member) or self._id_of(member.label)
        return b"%s=%s%s" % (self._name, text, self._ends[secure])


def cookie_value(cookie: bytes, wanted: bytes) -> bytes | None:
    """Return the value of the first cookie named ``wanted`` in that of a Cookie field, without blanks and quotes."""
    for pair in cookie.split(b";"):
        name, equals, value = pair.partition(b"=")
        if equals and name.strip(_BLANKS) == wanted:
            value = value.strip(_BLANKS)
            if len(value) > 1 and value.startswith(b'"') and value.endswith(b'"'):
                value = value[1:-1]
            return value
    return None


def _id(secret: bytes | None, pool_name: str, label: str) -> bytes:
    # Hashed to the sizes that blake2b takes: a secret may be longer than 64 bytes, a name longer than 16.
    key = b"" if secret is None else blake2b(secret).digest()
    person = blake2b(pool_name.encode(), digest_size=blake2b.PERSON_SIZE).digest()
    return urlsafe_b64encode(blake2b(label.encode(), digest_size=_ID_SIZE, key=key, person=person).digest())


def _attributes(sticky: Sticky, secure: bool) -> bytes:
    parts = [f"Path={sticky.path}", "HttpOnly", f"SameSite={sticky.same_site.value}"]
    if sticky.max_age is not None:
        parts.append(f"Max-Age={sticky.max_age}")
    # Browsers drop a cookie with SameSite=None that is not Secure (RFC 6265bis 5.7).
    if sticky.same_site is SameSite.NONE or (secure if sticky.secure is None else sticky.secure):
        parts.append("Secure")
    return "".join(f"; {part}" for part in parts).encode()
