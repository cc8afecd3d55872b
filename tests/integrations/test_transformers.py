"""Whole models of transformers with our experts: logits, gradients and tokens as those of its eager loop."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from moesaic.integrations import transformers as plugin
from moesaic.integrations.transformers import explain
from moesaic.testing.tolerance import is_close
from tests.integrations.family import FAMILIES, MIXED, REASONS, build_family


def _gradients(model: Any, ids_BS: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(ids_BS, use_cache=False).logits.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _logits(model: Any, ids_BS: Tensor, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids_BS, use_cache=False, **inputs).logits


def _greedy(model: Any, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
    return model.generate(ids_BS, attention_mask=mask_BS, do_sample=False, max_new_tokens=8)


def _ids(num_sequences: int = 2, num_positions: int = 11) -> Tensor:
    return torch.randint(1, 37, (num_sequences, num_positions))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_eager_when_the_family_is(family: str) -> None:
    theirs, ids_BS = build_family(family), _ids()
    ours = copy.deepcopy(theirs)
    ours.set_experts_implementation("moesaic")
    assert is_close(_logits(ours, ids_BS), _logits(theirs, ids_BS))
    found, expected = _gradients(ours, ids_BS), _gradients(theirs, ids_BS)
    assert found.keys() == expected.keys()
    assert [name for name in found if not is_close(found[name], expected[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_are_ours_or_have_a_known_reason_when_the_family_is(family: str) -> None:
    model, expected = build_family(family), REASONS.get(family, "moesaic")
    model.set_experts_implementation("moesaic")
    before = explain(model)
    assert set(before.values()) == {expected}
    _gradients(model, _ids())
    assert explain(model) == before, "the first call told another story"


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_eager_when_the_family_is(family: str) -> None:
    model, ids_BS = build_family(family), _ids(num_positions=5)
    expected = _greedy(model, ids_BS, torch.ones_like(ids_BS))
    model.set_experts_implementation("moesaic")
    assert torch.equal(_greedy(model, ids_BS, torch.ones_like(ids_BS)), expected)


# One layer: the rounding of a first would lead the router of a second to other experts, on either side.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in MIXED])
def test_logits_are_near_eager_when_the_dtype_is_narrow(family: str, dtype: torch.dtype) -> None:
    model, ids_BS = build_family(family, num_layers=1).to(dtype), _ids()
    expected = _logits(model, ids_BS)
    model.set_experts_implementation("moesaic")
    assert is_close(_logits(model, ids_BS), expected)
    assert set(explain(model).values()) == {REASONS.get(family, "moesaic")}


def test_our_kernel_runs_once_a_layer_when_a_model_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    mix = plugin.mix_experts
    monkeypatch.setattr(plugin, "mix_experts", lambda *inputs: calls.append(len(inputs[0])) or mix(*inputs))
    model = build_family("mixtral")
    _logits(model, _ids(2, 11))
    assert calls == []
    model.set_experts_implementation("moesaic")
    _logits(model, _ids(2, 11))
    assert calls == [22, 22]


def test_one_token_gives_eagers_logits_when_it_is_all_there_is() -> None:
    model, ids_BS = build_family("olmoe"), _ids(1, 1)
    expected = _logits(model, ids_BS)
    model.set_experts_implementation("moesaic")
    assert is_close(_logits(model, ids_BS), expected)


def test_padded_batch_gives_eagers_tokens_when_prompts_differ_in_length() -> None:
    model, ids_BS = build_family("qwen3_moe"), _ids(3, 6)
    mask_BS = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    ids_BS = ids_BS * mask_BS
    logits, tokens = _logits(model, ids_BS, attention_mask=mask_BS), _greedy(model, ids_BS, mask_BS)
    model.set_experts_implementation("moesaic")
    assert is_close(_logits(model, ids_BS, attention_mask=mask_BS), logits)
    assert torch.equal(_greedy(model, ids_BS, mask_BS), tokens)


def test_gradients_equal_eager_when_activations_are_recomputed() -> None:
    model, ids_BS = build_family("mixtral").train(), _ids()
    expected = _gradients(model, ids_BS)
    model.set_experts_implementation("moesaic")
    model.gradient_checkpointing_enable()
    found = _gradients(model, ids_BS)
    assert all(is_close(found[name], expected[name]) for name in expected)


def test_model_follows_its_dtype_when_it_changes() -> None:
    model, ids_BS = build_family("mixtral", num_layers=1), _ids()
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        model.to(dtype).set_experts_implementation("eager")
        expected = _logits(model, ids_BS)
        model.set_experts_implementation("moesaic")
        assert is_close(_logits(model, ids_BS), expected)
        assert set(explain(model).values()) == {"moesaic"}


def test_autocast_gives_the_logits_of_grouped_mm_when_weights_are_float32() -> None:
    model, ids_BS = build_family("mixtral", num_layers=1), _ids()
    model.set_experts_implementation("grouped_mm")
    with torch.autocast("cpu", torch.bfloat16):
        expected = _logits(model, ids_BS)
        model.set_experts_implementation("moesaic")
        assert is_close(_logits(model, ids_BS), expected)


def test_compiled_model_gives_eagers_logits_when_the_whole_graph_is_asked_for() -> None:
    model, ids_BS = build_family("mixtral"), _ids()
    expected = _logits(model, ids_BS)
    model.set_experts_implementation("moesaic")
    assert is_close(_logits(torch.compile(model, fullgraph=True, backend="eager"), ids_BS), expected)
    assert set(explain(model).values()) == {"the call is compiled or traced"}
    assert is_close(_logits(model, ids_BS), expected)
    assert set(explain(model).values()) == {"moesaic"}


def test_name_is_accepted_when_a_model_is_built_or_loaded(tmp_path: Path) -> None:
    theirs, ids_BS = build_family("mixtral"), _ids()
    built = transformers.AutoModelForCausalLM.from_config(theirs.config, experts_implementation="moesaic")
    assert set(explain(built).values()) == {"moesaic"}
    theirs.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="moesaic")
    assert is_close(_logits(loaded, ids_BS), _logits(theirs, ids_BS))
    assert set(explain(loaded).values()) == {"moesaic"}
    assert "moesaic" not in (tmp_path / "config.json").read_text()


def test_explain_names_the_other_implementation_when_ours_is_not_set() -> None:
    model = build_family("mixtral")
    assert explain(model) == {f"model.layers.{layer}.mlp.experts": "the model is set to eager" for layer in range(2)}
    assert explain(torch.nn.Linear(2, 2)) == {}
