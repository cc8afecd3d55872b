"""Messages that a thread sends while others compute."""

import gc
import threading
import weakref

import pytest
import torch

from moesaic.comm.line import Line


def test_messages_are_moved_in_their_order_beside_the_one_who_began_them_when_begun() -> None:
    line, gate, told = Line(), threading.Event(), list[int]()

    def move(number: int) -> torch.Tensor:
        assert gate.wait(10)
        told.append(number)
        return torch.full((1,), float(number), requires_grad=False)

    arrivals = [line.begin(lambda number=number: move(number)) for number in range(5)]  # type: ignore[misc]
    assert told == []
    gate.set()
    assert [float(arrival.result(10)) for arrival in arrivals] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert told == [0, 1, 2, 3, 4]


def test_failure_is_raised_where_the_message_is_waited_for_and_others_still_come() -> None:
    line, weight = Line(), torch.ones(1, requires_grad=True)

    def fail() -> torch.Tensor:
        raise RuntimeError("connection closed by peer")

    broken, whole = line.begin(fail), line.begin(lambda: weight * 2)
    with pytest.raises(RuntimeError, match="connection closed by peer"):
        broken.result(10)
    assert not whole.result(10).requires_grad, "a gradient is the affair of whoever waits"


def test_message_is_let_go_when_it_has_come() -> None:
    line = Line()
    rows = torch.ones(3)
    kept = weakref.ref(rows)
    assert float(line.begin(lambda rows=rows: rows * 2).result(10)[0]) == 2.0  # type: ignore[misc]
    line.begin(lambda: torch.ones(1)).result(10)
    del rows
    gc.collect()
    assert kept() is None
