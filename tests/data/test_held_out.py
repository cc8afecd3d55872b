from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data.held_out import HeldOutRule, choose_rule


@given(share=st.integers(0, 99).map(lambda percent: percent / 100), num_documents=st.integers(0, 600))
def test_held_out_takes_its_share_of_documents_when_they_are_many(share: float, num_documents: int) -> None:
    rule = choose_rule(share, has_many_documents=True)
    taken = [number for number in range(num_documents) if rule.num_held_out_tokens(number, 10)]
    assert abs(len(taken) - num_documents * share) <= 1


def test_held_out_documents_are_whole_and_scattered_when_they_are_many() -> None:
    rule = choose_rule(0.02, has_many_documents=True)
    taken = [number for number in range(1000) if rule.num_held_out_tokens(number, 10)]
    assert {rule.num_held_out_tokens(number, 10) for number in taken} == {10}
    assert len({number % 50 for number in taken}) > 5
    assert [number // 50 for number in taken] == list(range(20))


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.02, 2), (0.5, 50), (0.999, 99)])
def test_held_out_is_the_end_of_each_document_when_they_are_few(share: float, held: int) -> None:
    rule = choose_rule(share, has_many_documents=False)
    assert {rule.num_held_out_tokens(number, 100) for number in range(5)} == {held}


def test_held_out_share_is_exact_when_given_as_a_decimal() -> None:
    assert choose_rule(0.02, False) == HeldOutRule(Fraction(1, 50), False)
