"""Fairness between visitors: their photos take turns, and work stops when nobody waits for its answer."""

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import TypeVar

from modeling.runtime import own_cores

AT_ONCE = max(2, min(4, own_cores()))  # photos; more would only compete for the same cores
MAX_EACH = 16  # requests of one visitor at once
MAX_ALL = 100
GONE_AFTER_S = 5.0

Step = TypeVar("Step")


class BusyError(ValueError):
    """A request that is not answered now; the message says why."""


class Visitors:
    """Who is being answered, and who still listens; safe under threads."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._changed = threading.Condition()
        self._free, self._limit = at_once, max(1, at_once - 1)  # one visitor leaves a place for another
        self._reading: Counter[str] = Counter()
        self._waiting: dict[str, deque[object]] = {}  # by visitor; first the one whose last turn is longest ago
        self._answering: Counter[str] = Counter()
        self._listening: Counter[str] = Counter()

    @contextlib.contextmanager
    def answering(self, visitor: str) -> Iterator[None]:
        """Count a request while it is answered.

        Raises:
            BusyError: If there are too many.
        """
        with self._changed:
            if self._answering[visitor] >= MAX_EACH or self._answering.total() >= MAX_ALL:
                raise BusyError("Too many requests are being answered; try again in a minute.")
            self._answering[visitor] += 1
        try:
            yield
        finally:
            with self._changed:
                self._answering -= Counter({visitor: 1})

    @contextlib.contextmanager
    def turn(self, visitor: str) -> Iterator[None]:
        """Wait for this visitor's turn to have one photo read and classified."""
        ticket = object()
        with self._changed:
            self._waiting.setdefault(visitor, deque()).append(ticket)
            self._changed.wait_for(lambda: self._free > 0 and self._next() is ticket)
            tickets = self._waiting.pop(visitor)
            tickets.popleft()
            if tickets:
                self._waiting[visitor] = tickets  # behind all other visitors
            self._free -= 1
            self._reading[visitor] += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._reading -= Counter({visitor: 1})
                self._changed.notify_all()

    def _next(self) -> object:
        waiting = self._waiting.items()
        return next((tickets[0] for visitor, tickets in waiting if self._reading[visitor] < self._limit), None)

    @contextlib.contextmanager
    def listening(self, session: str) -> Iterator[None]:
        """Note that somebody waits for the answers of a session."""
        with self._changed:
            self._listening[session] += 1
        try:
            yield
        finally:
            with self._changed:
                self._listening -= Counter({session: 1})

    def waits(self, session: str) -> bool:
        """True if somebody waits for the answers of a session."""
        return self._listening[session] > 0

    def while_waited(self, work: Iterator[Step], session: str | None) -> Iterator[Step]:
        """Pass the steps of some work on for as long as somebody waits for the answers of a session."""
        started = time.monotonic()
        for step in work:
            yield step
            if time.monotonic() - started > GONE_AFTER_S and not self.waits(session or ""):
                raise BusyError("Nobody waits for this answer; the work was stopped.")
