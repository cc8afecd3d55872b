"""Signals become a request to stop."""

import signal

import pytest

from moesaic.train.interrupt import catch_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_remembered_by_name_when_it_comes(number: signal.Signals) -> None:
    with catch_signals() as interrupt:
        assert interrupt.received is None
        signal.raise_signal(number)
        assert interrupt.received == number.name


def test_second_signal_ends_at_once_when_the_first_was_not_enough() -> None:
    with catch_signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_those_of_before_when_the_block_ends_by_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RuntimeError), catch_signals():
        raise RuntimeError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
