"""Lion against the paper's formula in plain Python."""

import math

import pytest
import torch

from moesaic.optim.lion import Lion


def _step_in_plain_python(
    value: float, moment: float, grad: float, rate: float, betas: tuple[float, float], decay: float
) -> tuple[float, float]:
    first, second = betas
    average = first * moment + (1 - first) * grad
    direction = math.copysign(1.0, average) if average else 0.0
    return value - rate * (direction + decay * value), second * moment + (1 - second) * grad


def test_lion_follows_the_formula_when_several_steps_are_taken() -> None:
    values, grads = [0.5, -2.0, 3.0], [[0.3, -0.1, 0.0], [-0.6, -0.2, 0.0], [0.02, 0.4, 0.0]]
    rate, betas, decay = 0.05, (0.9, 0.8), 0.3
    param = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))
    optimizer = Lion([param], lr=rate, betas=betas, weight_decay=decay)
    moments = [0.0] * len(values)
    for grad in grads:
        param.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        steps = [_step_in_plain_python(*each, rate, betas, decay) for each in zip(values, moments, grad, strict=True)]
        values, moments = [value for value, _ in steps], [moment for _, moment in steps]
        assert param.tolist() == pytest.approx(values)
        assert optimizer.state[param]["exp_avg"].tolist() == pytest.approx(moments)


def test_lion_leaves_a_parameter_alone_when_it_has_no_gradient() -> None:
    moved, still = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = Lion([moved, still], lr=0.1, weight_decay=0.5)
    moved.grad = torch.ones(2)
    optimizer.step()
    assert moved.tolist() != [1.0, 1.0]
    assert still.tolist() == [1.0, 1.0]
    assert still not in optimizer.state


def test_lion_refuses_a_closure_when_one_is_given() -> None:
    with pytest.raises(AssertionError, match="no closure"):
        Lion([torch.nn.Parameter(torch.ones(1))]).step(lambda: None)
