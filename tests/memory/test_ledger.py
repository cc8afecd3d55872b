"""The account of memory: never negative, never above its budget."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moesaic.errors import MemoryBudgetError
from moesaic.memory.ledger import Ledger

BUDGET = 1000
PURPOSES = st.sampled_from(["weights", "keys and values", "buffers"])


class LedgerMachine(RuleBasedStateMachine):
    """Takes and gives back, beside a plain dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(BUDGET)
        self.held: dict[str, int] = {}
        self.most = 0

    @rule(purpose=PURPOSES, num_bytes=st.integers(0, 700))
    def reserve(self, purpose: str, num_bytes: int) -> None:
        fits = sum(self.held.values()) + num_bytes <= BUDGET
        if not fits:
            with pytest.raises(MemoryBudgetError, match=f"{purpose} would take"):
                self.ledger.reserve(purpose, num_bytes)
            return
        self.ledger.reserve(purpose, num_bytes)
        self.held[purpose] = self.held.get(purpose, 0) + num_bytes
        self.most = max(self.most, sum(self.held.values()))

    @rule(purpose=PURPOSES, share=st.floats(0, 1))
    def release(self, purpose: str, share: float) -> None:
        num_bytes = int(self.held.get(purpose, 0) * share)
        self.ledger.release(purpose, num_bytes)
        if purpose in self.held:
            self.held[purpose] -= num_bytes

    @invariant()
    def holdings_are_what_was_taken(self) -> None:
        assert self.ledger.held == sum(self.held.values()) <= BUDGET
        assert {name: size for name, size in self.ledger.holdings.items() if size} == {
            name: size for name, size in self.held.items() if size
        }
        assert self.ledger.free == BUDGET - self.ledger.held
        assert self.ledger.most == self.most


TestLedger = LedgerMachine.TestCase


def test_more_is_given_back_than_was_taken_when_somebody_errs() -> None:
    ledger = Ledger(BUDGET)
    ledger.reserve("weights", 5)
    with pytest.raises(AssertionError, match="weights gives back 6 bytes of 5"):
        ledger.release("weights", 6)


def test_anything_is_taken_when_there_is_no_budget() -> None:
    ledger = Ledger(None)
    ledger.reserve("weights", 10**15)
    assert (ledger.free, ledger.held) == (None, 10**15)


def test_refusal_names_what_is_free_when_the_budget_is_spent() -> None:
    ledger = Ledger(2**30)
    ledger.reserve("weights", 2**29)
    with pytest.raises(MemoryBudgetError) as caught:
        ledger.reserve("keys and values", 2**30)
    assert caught.value.text == "keys and values would take 1 GiB; of the budget of 1 GiB 512 MiB are free"
    assert "--memory" in caught.value.hint
