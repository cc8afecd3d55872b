"""The tree of exceptions and its hints."""

import pytest

from moesaic import errors
from moesaic.errors import EXIT_USER, MoesaicError, nearest_hint

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MoesaicError)]


@pytest.mark.parametrize("kind", KINDS)
def test_error_carries_text_and_hint_when_raised(kind: type[MoesaicError]) -> None:
    with pytest.raises(MoesaicError, match="what was found") as caught:
        raise kind("what was found", "what to do")
    assert (caught.value.text, caught.value.hint) == ("what was found", "what to do")
    assert caught.value.exit_code == EXIT_USER


def test_error_has_an_empty_hint_when_none_is_given() -> None:
    assert MoesaicError("text").hint == ""


def test_hint_names_the_nearest_when_a_name_is_misspelt() -> None:
    assert nearest_hint("learning_rat", ["betas", "learning_rate"]) == "did you mean 'learning_rate'?"


def test_hint_lists_all_names_in_order_when_none_is_near() -> None:
    assert nearest_hint("xyz", ["betas", "adamw"]) == "accepted: adamw, betas"
