"""One optimizer step: what is accumulated, what is scaled, and what stops it."""

from typing import Any

import pytest
import torch

from moesaic.config.run import RunConfig
from moesaic.data.loader import Batch
from moesaic.errors import TrainingError
from moesaic.models.model import LanguageModel, build_model
from moesaic.nn.init import init_weights
from moesaic.ops.loss import IGNORED_LABEL
from moesaic.optim.table import build_optimizer
from moesaic.testing.tolerance import is_close
from moesaic.train.step import StepResult, train_step
from tests.train.conftest import Recipe

DROPLESS = {"model.router_aux_loss_coef": 0.0, "train.batch_size": 8}


def _batch(num_sequences: int = 8, length: int = 16) -> Batch:
    source = torch.Generator().manual_seed(1)
    ids_BS = torch.randint(300, (num_sequences, length + 1), generator=source)
    return Batch(ids_BS[:, :-1], ids_BS[:, 1:].clone(), None, None, 40, (("words.txt", "words.txt"),))


def _model(config: RunConfig) -> LanguageModel:
    model = build_model(config.model)
    init_weights(model, config.model, config.train.seed)
    return model


def _step(config: RunConfig, batch: Batch, **attributes: Any) -> tuple[StepResult, LanguageModel]:
    model = _model(config)
    for name, value in attributes.items():
        setattr(model.decoder, name, value)
    return train_step(model, build_optimizer(model, config.optim), batch, 1, config), model


def _grads(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_loss_and_gradients_stay_when_a_batch_is_cut_into_micro_batches(recipe: Recipe) -> None:
    batch = _batch()
    # Uneven labels: a mean of micro-batch means would differ.
    batch.labels_BS[0, 3:] = IGNORED_LABEL
    batch.labels_BS[5] = IGNORED_LABEL
    unclipped = {**DROPLESS, "optim.clip_norm": 0}
    whole, whole_model = _step(recipe(unclipped), batch)
    cut, cut_model = _step(recipe({**unclipped, "train.micro_batch_size": 2}), batch)
    assert cut.loss == pytest.approx(whole.loss, rel=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    expected = _grads(whole_model)
    assert len(expected) == len(list(whole_model.parameters()))
    for name, grad in _grads(cut_model).items():
        assert is_close(grad, expected[name]), name
    for layer, load in cut.loads.items():
        assert torch.equal(load.tokens_per_expert_E, whole.loads[layer].tokens_per_expert_E)


def test_z_loss_weighs_the_same_when_a_batch_is_cut_into_micro_batches(recipe: Recipe) -> None:
    changes = {**DROPLESS, "model.router_z_loss_coef": 0.5, "optim.clip_norm": 0}
    whole, whole_model = _step(recipe(changes), _batch())
    cut, cut_model = _step(recipe({**changes, "train.micro_batch_size": 2}), _batch())
    assert cut.losses["z_loss"] == pytest.approx(whole.losses["z_loss"], rel=1e-5)
    name = "decoder.layers.0.moe.router.weight"
    assert is_close(_grads(cut_model)[name], _grads(whole_model)[name])


@pytest.mark.parametrize("key", ["model.router_aux_loss_coef", "model.router_z_loss_coef"])
def test_auxiliary_loss_pulls_the_router_but_is_not_told_in_the_loss_when_it_has_a_weight(
    key: str, recipe: Recipe
) -> None:
    plain, plain_model = _step(recipe({**DROPLESS, "optim.clip_norm": 0}), _batch())
    pulled, pulled_model = _step(recipe({**DROPLESS, "optim.clip_norm": 0, key: 3.0}), _batch())
    name = "decoder.layers.1.moe.router.weight"
    assert pulled.loss == plain.loss
    assert not torch.equal(_grads(pulled_model)[name], _grads(plain_model)[name])


def test_gradients_are_equal_bit_for_bit_when_activations_are_recomputed(recipe: Recipe) -> None:
    kept, kept_model = _step(recipe(), _batch(4))
    redone, redone_model = _step(recipe(), _batch(4), recompute=True)
    assert redone.loss == kept.loss
    assert redone.grad_norm == kept.grad_norm
    for name, parameter in kept_model.named_parameters():
        assert torch.equal(redone_model.get_parameter(name), parameter), name


def test_weights_gradients_and_moments_stay_float32_when_computing_in_bfloat16(recipe: Recipe) -> None:
    config = recipe()
    model = _model(config)
    model.decoder.compute_dtype = torch.bfloat16
    optimizer = build_optimizer(model, config.optim)
    assert model.decode(_batch().ids_BS).hidden_BSD.dtype == torch.bfloat16
    train_step(model, optimizer, _batch(), 1, config)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert optimizer.state[parameter]["exp_avg"].dtype == torch.float32, name


def test_rate_of_the_step_is_set_when_the_schedule_moves(recipe: Recipe) -> None:
    config = recipe({"optim.warmup_steps": 4, "optim.learning_rate": 0.4})
    model = _model(config)
    optimizer = build_optimizer(model, config.optim)
    rates = [train_step(model, optimizer, _batch(), step, config).learning_rate for step in (1, 2)]
    assert rates == pytest.approx([0.1, 0.2])
    assert {group["lr"] for group in optimizer.param_groups} == {rates[-1]}


def test_gradients_are_scaled_to_the_limit_when_their_norm_exceeds_it(recipe: Recipe) -> None:
    result, model = _step(recipe({"optim.clip_norm": 0.01}), _batch())
    norm = torch.stack([grad.norm() for grad in _grads(model).values()]).norm()
    assert result.grad_norm > 0.1
    assert float(norm) == pytest.approx(0.01, rel=1e-4)


def test_bias_moves_against_the_load_of_the_step_when_the_router_is_sigmoid(recipe: Recipe) -> None:
    result, model = _step(recipe({"model.router": "sigmoid", "model.bias_update_speed": 0.5}), _batch())
    for layer, moe in model.moe_layers().items():
        counts_E = result.loads[layer].tokens_per_expert_E.double()
        assert moe.router.selection_bias.tolist() == ((counts_E.mean() - counts_E).sign() * 0.5).tolist()
        assert moe.router.selection_bias.any()


def test_bias_stays_when_its_speed_is_zero(recipe: Recipe) -> None:
    _, model = _step(recipe({"model.router": "sigmoid", "model.bias_update_speed": 0.0}), _batch())
    assert not any(moe.router.selection_bias.any() for moe in model.moe_layers().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_stops_with_its_number_and_batch_and_moves_nothing_when_the_loss_is(value: float, recipe: Recipe) -> None:
    config = recipe({"model.router": "sigmoid"})
    model = _model(config)
    with torch.no_grad():
        model.decoder.norm.weight[0] = value
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    named = r"^step 7: the loss is nan .* batch: samples 40\.\.47 of words.txt: words.txt$"
    with pytest.raises(TrainingError, match=named) as raised:
        train_step(model, build_optimizer(model, config.optim), _batch(), 7, config)
    assert "optim.learning_rate" in raised.value.hint
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


def test_step_stops_when_only_the_gradient_is_not_finite(recipe: Recipe) -> None:
    config = recipe()
    model = _model(config)
    model.decoder.norm.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(TrainingError, match=r"the gradient norm (inf|nan)"):
        train_step(model, build_optimizer(model, config.optim), _batch(), 1, config)


def test_loss_is_zero_when_a_batch_has_no_labels(recipe: Recipe) -> None:
    batch = _batch()
    batch.labels_BS.fill_(IGNORED_LABEL)
    result, _ = _step(recipe(DROPLESS), batch)
    assert (result.loss, result.grad_norm) == (0.0, 0.0)
