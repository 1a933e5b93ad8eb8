"""Fairness between visitors: their photos take turns."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator

from answers import Turn
from errors import QuestionError

from modeling.runtime import own_cores

AT_ONCE = max(2, min(4, own_cores()))  # photos; more would only compete for the same cores
MAX_EACH = 16  # requests of one visitor at once
MAX_ALL = 100


class Visitors:
    """Who is being answered, and whose turn is next; safe under threads."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._changed = threading.Condition()
        self._at_once, self._limit = at_once, max(1, at_once - 1)  # one visitor leaves a place for another
        self._reading: Counter[str] = Counter()
        self._waiting: list[str] = []  # the visitor of each photo, the next one first
        self._answering: Counter[str] = Counter()

    @contextlib.contextmanager
    def answering(self, visitor: str) -> Iterator[Turn]:
        """Count a request while it is answered; yields what waits for the turn of each of its photos."""
        with self._changed:
            if self._answering[visitor] >= MAX_EACH or self._answering.total() >= MAX_ALL:
                raise QuestionError("Too many requests are being answered; try again in a minute.")
            self._answering[visitor] += 1
        try:
            yield lambda: self.turn(visitor)
        finally:
            with self._changed:
                self._answering -= Counter({visitor: 1})

    @contextlib.contextmanager
    def turn(self, visitor: str) -> Iterator[None]:
        """Wait for this visitor's turn to have one photo read and classified."""
        with self._changed:
            self._waiting.append(visitor)
            self._changed.wait_for(lambda: self._next() == visitor)
            self._waiting.remove(visitor)
            self._waiting.sort(key=visitor.__eq__)  # the visitor's other photos are behind those of all others
            self._reading[visitor] += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._reading -= Counter({visitor: 1})
                self._changed.notify_all()

    def _next(self) -> str | None:
        may = (visitor for visitor in self._waiting if self._reading[visitor] < self._limit)
        return next(may, None) if self._reading.total() < self._at_once else None
