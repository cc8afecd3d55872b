"""What the last tokens chose, as the policies are told."""

from moesaic.nn.moe import paged
from moesaic.nn.moe.paged import choices_of_last


def test_every_choice_of_a_step_is_one_when_sequences_have_a_token_each() -> None:
    assert list(choices_of_last([0, 0, 1, 1], [5, 2, 2, 7], [1, 1])) == [[2, 5, 7]]


def test_last_tokens_of_each_sequence_are_steps_when_prompts_differ_in_length() -> None:
    tokens, experts = [0, 1, 2, 3, 4], [10, 11, 12, 20, 21]
    assert list(choices_of_last(tokens, experts, [3, 2])) == [[10], [11, 20], [12, 21]]


def test_no_more_steps_are_told_than_are_remembered_when_a_prompt_is_long() -> None:
    count = paged._NUM_RECENT + 5
    found = list(choices_of_last(list(range(count)), list(range(count)), [count]))
    assert found == [[token] for token in range(5, count)]


def test_ended_sequences_and_dropped_tokens_tell_nothing() -> None:
    assert list(choices_of_last([1], [4], [0, 2])) == [[4]]
    assert list(choices_of_last([], [], [2])) == []
