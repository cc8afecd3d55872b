"""The builders and the tolerances that ship for plug-in authors."""

import math

import pytest
import torch

from moesaic.errors import ConfigError
from moesaic.testing.tiny import tiny_config, tiny_model
from moesaic.testing.tolerance import TOLERANCES, is_close, relative_error


def test_tiny_model_has_a_few_thousand_parameters_when_built() -> None:
    assert tiny_model().num_parameters()[0] < 20_000


def test_tiny_config_takes_changes_when_they_fit() -> None:
    assert tiny_config(num_experts=7).num_experts == 7


def test_tiny_config_is_refused_when_a_field_is_misspelt() -> None:
    with pytest.raises(ConfigError, match="tiny_config: unknown key 'num_expert'") as caught:
        tiny_config(num_expert=7)
    assert caught.value.hint == "did you mean 'num_experts'?"


def test_relative_error_is_over_the_largest_magnitude_when_values_differ() -> None:
    assert relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25


def test_nothing_is_close_when_a_value_is_nan() -> None:
    for dtype in TOLERANCES:
        assert not is_close(torch.tensor([math.nan], dtype=dtype), torch.tensor([1.0], dtype=dtype))


def test_empty_results_are_close_when_shapes_agree() -> None:
    assert is_close(torch.zeros(0, 3), torch.zeros(0, 3))


def test_relative_error_is_refused_when_shapes_differ() -> None:
    with pytest.raises(AssertionError, match=r"shapes \(2,\) and \(1, 2\) differ"):
        relative_error(torch.zeros(2), torch.zeros(1, 2))
