"""Whose a secret is: a worker's memory of the bearers it has seen, and its questions to the owner.

Kept is a secret's SHA-256, never itself, but for a question under way. What is known is asked anew after a while and
whenever keys change; what is nobody's is remembered for a moment, so that a guesser costs the owner little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple

from baseload.serve import wire
from baseload.serve.keys import well_formed
from baseload.serve.pocket import Pocket
from baseload.serve.telling import tell_all
from baseload.serve.wire import KeyView

FRESH_S: Final = 30.0  # after so long it is asked anew whose a secret is
UNKNOWN_S: Final = 1.0  # a secret that is nobody's is not asked about again for so long
WAIT_S: Final = 2.0  # a request waits so long for the owner
BEARERS_MOST: Final = 16_384
UNKNOWN_MOST: Final = 4_096
LOOKING_MOST: Final = 256


class Refusal(NamedTuple):
    """Why a request may not be opened, as the client is to hear it."""

    status: int
    code: str
    message: str
    retry_s: float | None


_REFUSED: Final[dict[str, tuple[int, str, str]]] = {
    "revoked": (401, "invalid_api_key", "this API key was revoked or has expired"),
    "unknown": (401, "invalid_api_key", "no such API key"),
    "gone": (403, "tenant_not_served", "the tenant of this API key is not in the fleet file"),
    "concurrency": (429, "rate_limit_exceeded", "too many requests of this key or tenant at once"),
    "requests": (429, "rate_limit_exceeded", "too many requests a minute for this key or tenant"),
    "tokens": (429, "rate_limit_exceeded", "too many tokens a minute for this key or tenant"),
    "budget": (429, "insufficient_quota", "the budget of this key or tenant does not cover this request"),
    "storage": (503, "storage_unavailable", "usage cannot be recorded now, so nothing may be billed; try again"),
    "drain": (503, "draining", "this gateway is being replaced; try again"),
}


def digest_of(bearer: bytes) -> bytes:
    """Return what is kept of a secret."""
    return sha256(bearer).digest()


def refusal(reason: str, retry_s: float | None = None) -> Refusal:
    """Return a refusal by its word.

    >>> refusal("budget").code
    'insufficient_quota'
    """
    status, code, message = _REFUSED[reason]
    if status == 503 and retry_s is None:
        retry_s = 1.0
    return Refusal(status, code, message, retry_s)


Found = Callable[[Pocket | Refusal], None]


class _Question:
    __slots__ = ("bearer", "digest", "tells", "until_s")

    def __init__(self, bearer: bytes, digest: bytes, until_s: float) -> None:
        self.bearer, self.digest, self.until_s = bearer, digest, until_s
        self.tells: list[Found] = []


class Bearers:
    """Secrets that were seen, and questions under way."""

    def __init__(
        self,
        ask: Callable[[wire.LookUp], bool],  # False: the owner is not there, and has not been for a while
        pocket: Callable[[KeyView], Pocket],
        *,
        clock_s: Callable[[], float],
        utc_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._ask, self._pocket, self._clock_s, self._utc_ns = ask, pocket, clock_s, utc_ns
        self._known: dict[bytes, tuple[Pocket, float]] = {}
        self._unknown: dict[bytes, float] = {}
        self._questions: dict[int, _Question] = {}
        self._last_i = 0

    def quick(self, digest: bytes, now_s: float) -> Pocket | None:
        """Return the pocket of a secret, by its digest, that is known, fresh, and of a key without an end."""
        known = self._known.get(digest)
        if known is None or known[1] <= now_s or known[0].stop or known[0].view.expires_ns >= 0:
            return None
        return known[0]

    def find(self, bearer: bytes, now_s: float, then: Found) -> None:
        """Tell whose a secret is, now or later."""
        digest = digest_of(bearer)
        known = self._known.get(digest)
        if known is not None:
            if known[1] <= now_s:
                self._look_up(bearer, digest, now_s, None)
            return then(self._barred(known[0]) or known[0])
        if not well_formed(bearer) or self._unknown.get(digest, 0.0) > now_s:
            return then(refusal("unknown"))
        self._look_up(bearer, digest, now_s, then)

    def _barred(self, pocket: Pocket) -> Refusal | None:
        view = pocket.view
        if pocket.stop:
            return refusal(pocket.stop)
        if 0 <= view.expires_ns <= self._utc_ns():
            return refusal("revoked")
        return refusal("gone") if view.tenant_i < 0 else None

    def _look_up(self, bearer: bytes, digest: bytes, now_s: float, then: Found | None) -> None:
        for question in self._questions.values():
            if question.digest == digest:
                if then is not None:
                    question.tells.append(then)
                return
        self._last_i += 1
        if len(self._questions) >= LOOKING_MOST or not self._ask(wire.LookUp(self._last_i, bearer)):
            if then is not None:
                then(refusal("storage"))
            return
        question = self._questions[self._last_i] = _Question(bearer, digest, now_s + WAIT_S)
        if then is not None:
            question.tells.append(then)

    def answered(self, message: wire.KeyIs) -> None:
        """Take the owner's answer."""
        question = self._questions.pop(message.ask_i, None)
        if question is None:
            return
        now_s = self._clock_s()
        answer: Pocket | Refusal
        if message.view is None:
            self._known.pop(question.digest, None)
            if len(self._unknown) >= UNKNOWN_MOST:
                self._unknown.clear()
            self._unknown[question.digest] = now_s + UNKNOWN_S
            answer = refusal("unknown")
        else:
            pocket = self._pocket(message.view)
            if len(self._known) >= BEARERS_MOST:
                del self._known[next(iter(self._known))]
            self._known[question.digest] = (pocket, now_s + FRESH_S)
            answer = self._barred(pocket) or pocket
        tell_all([partial(tell, answer) for tell in question.tells])

    def ask_again(self) -> None:
        """Put the questions under way to an owner that has come back."""
        for ask_i, question in self._questions.items():
            self._ask(wire.LookUp(ask_i, question.bearer))

    def late(self, now_s: float) -> list[Callable[[], None]]:
        """Return what tells those who have waited too long that they are refused; their questions are forgotten."""
        tells = list[Callable[[], None]]()
        for ask_i in [i for i, question in self._questions.items() if question.until_s <= now_s]:
            tells += [partial(tell, refusal("storage")) for tell in self._questions.pop(ask_i).tells]
        return tells

    def forget(self) -> None:
        """Keys changed: every secret is asked about anew at its next use."""
        self._known.clear()
        self._unknown.clear()

    def drop(self, pocket: Pocket) -> None:
        """Forget the secrets of a pocket that was let go."""
        self._known = {digest: entry for digest, entry in self._known.items() if entry[0] is not pocket}
