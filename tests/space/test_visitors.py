"""Fairness between visitors."""

import threading
import time

import pytest
import visitors
from errors import QuestionError
from visitors import Visitors


def test_visitors_take_turns_whatever_one_of_them_has_waiting():
    found, order = Visitors(at_once=1), []
    first_is_in, go = threading.Event(), threading.Event()

    def one(visitor: str, number: int) -> None:
        with found.turn(visitor):
            first_is_in.set()
            go.wait(10)
            order.append((visitor, number))

    threads = []
    for visitor, number in [("greedy", number) for number in range(5)] + [("b", 0), ("c", 0), ("b", 1)]:
        thread = threading.Thread(target=one, args=(visitor, number))
        thread.start()
        threads.append(thread)
        first_is_in.wait(10)
        time.sleep(0.05)  # so that they come in this order
    go.set()
    for thread in threads:
        thread.join(10)
    visitors_in_order = [visitor for visitor, _ in order]
    # Of the greedy visitor one is in and one was next when the others came.
    assert visitors_in_order.index("b") <= 2
    assert visitors_in_order.index("c") <= 3
    assert visitors_in_order[-1] == "greedy"
    assert len(order) == 8


def test_no_more_than_so_many_photos_are_read_at_once():
    found, now, most = Visitors(at_once=2), [], []

    def one(visitor: str) -> None:
        for _ in range(5):
            with found.turn(visitor):
                now.append(visitor)
                most.append(len(now))
                time.sleep(0.002)
                now.remove(visitor)

    threads = [threading.Thread(target=one, args=(f"{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert max(most) == 2


def test_one_visitor_leaves_a_place_for_another():
    found, go, second = Visitors(at_once=2), threading.Event(), threading.Event()

    def greedy() -> None:
        with found.turn("greedy"):
            go.wait(30)

    threads = [threading.Thread(target=greedy) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)

    def other() -> None:
        with found.turn("other"):
            second.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert second.wait(10)  # while the photos of the first are still being read
    go.set()
    for one in (*threads, thread):
        one.join(10)
        assert not one.is_alive()


def test_requests_of_one_visitor_and_of_all_are_bounded(monkeypatch):
    monkeypatch.setattr(visitors, "MAX_EACH", 2)
    monkeypatch.setattr(visitors, "MAX_ALL", 3)
    found = Visitors()
    with found.answering("a"), found.answering("a"):
        with pytest.raises(QuestionError), found.answering("a"):
            pass
        with found.answering("b"), pytest.raises(QuestionError), found.answering("c"):
            pass
    with found.answering("a"), found.answering("a"):
        pass
