"""Who asks, and how much they may.

Keys are compared as digests, in constant time and every one of them, so that an answer's time tells nothing. A client
is known from then on by a name that does not hold its key.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict

from ace.errors import BusyError

_MAX_CLIENTS = 10_000


class Keys:
    """The keys that open a server. Without any, every caller is let in, under the key that it happens to show."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def client_of(self, authorization: str | None) -> str | None:
        """The client's name for an `Authorization` header; None = not allowed in."""
        scheme, _, key = (authorization or "").partition(" ")
        shown = hashlib.sha256((key.strip() if scheme.lower() == "bearer" else "").encode()).digest()
        known = [hmac.compare_digest(shown, digest) for digest in self._digests]
        if self._digests and not any(known):
            return None
        return hashlib.sha256(b"ace client " + shown).hexdigest()[:16]


class Quota:
    """Pictures per minute of each client: an allowance that fills up again steadily, at most a minute's worth."""

    def __init__(self, per_minute: float | None) -> None:
        self.per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client → images left, at this time

    def spend(self, client: str, count: int) -> None:
        """Use up the allowance for `count` images. Raises BusyError if there is not enough of it now."""
        if self.per_minute is None:
            return
        most = max(self.per_minute, float(count))  # a request larger than the allowance passes when it is full
        now = time.monotonic()
        left, then = self._left.get(client, (most, now))
        left = min(most, left + (now - then) * self.per_minute / 60)
        if left < count:
            raise BusyError(
                f"your quota is {self.per_minute:g} images per minute: try again later",
                60 * (count - left) / self.per_minute,
            )
        self._left[client] = (left - count, now)
        self._left.move_to_end(client)
        while len(self._left) > _MAX_CLIENTS:
            self._left.popitem(last=False)

    def give_back(self, client: str, count: int) -> None:
        """Undo `spend` for work that was not taken on."""
        if client in self._left:
            left, then = self._left[client]
            self._left[client] = (left + count, then)
