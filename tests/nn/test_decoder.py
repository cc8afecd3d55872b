"""The decoder: packing, padding, caching, recomputation and precision leave each text's result alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moesaic.testing.tiny import tiny_model
from moesaic.testing.tolerance import is_close

# Options under which a token's result depends on the tokens before it alone.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dense": {"num_experts": 0, "num_experts_per_tok": 0},
    "windows": {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "norms and biases": {"qk_norm": "head", "attention_bias": True, "attention_output_bias": True},
    "norm over width": {"qk_norm": "width", "clip_qkv": 0.5},
    "every second layer": {"decoder_sparse_step": 2},
    "capacity in training": {"capacity_factor": 0.5},
    "pregated": {"pregated": True, "num_hidden_layers": 4, "mlp_only_layers": [2]},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
}
each_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def _ids(*lengths: int) -> list[Tensor]:
    return [torch.randint(61, (1, length)) for length in lengths]


@torch.no_grad()
@each_variant
def test_packed_documents_equal_separate_ones_when_attention_respects_them(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    first, second, third = _ids(4, 6, 10)
    ids_BS = torch.cat([torch.cat([first, second], dim=1), third])
    documents_BS = torch.tensor([[0] * 4 + [1] * 6, [0] * 10])
    positions_BS = torch.tensor([[*range(4), *range(6)], [*range(10)]])
    packed = model.decode(ids_BS, positions_BS=positions_BS, document_ids_BS=documents_BS).hidden_BSD

    assert is_close(packed[:1, :4], model.decode(first).hidden_BSD)
    assert is_close(packed[:1, 4:], model.decode(second).hidden_BSD)
    assert is_close(packed[1:], model.decode(third).hidden_BSD)


@torch.no_grad()
@each_variant
def test_padded_rows_equal_rows_alone_when_lengths_differ(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    short, long = _ids(3, 8)
    ids_BS = torch.cat([torch.cat([short, torch.zeros(1, 5, dtype=torch.int64)], dim=1), long])
    valid_BS = torch.arange(8) < torch.tensor([[3], [8]])
    found = model.decode(ids_BS, valid_BS=valid_BS)

    assert is_close(found.hidden_BSD[:1, :3], model.decode(short).hidden_BSD)
    assert is_close(found.hidden_BSD[1:], model.decode(long).hidden_BSD)
    for load in found.loads.values():
        assert int(load.tokens_per_expert_E.sum()) == 11 * 2


@torch.no_grad()
@each_variant
def test_cached_chunks_equal_one_pass_when_a_text_comes_in_pieces(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    (ids_BS,) = _ids(11)
    cache = model.new_cache(1, 12)
    pieces = [model.decode(piece, cache=cache).hidden_BSD for piece in ids_BS.split([5, 1, 3, 2], dim=1)]
    assert is_close(torch.cat(pieces, dim=1), model.decode(ids_BS).hidden_BSD)
    assert cache.lengths_B.tolist() == [11]


def test_cache_has_the_dtype_of_the_activations_when_it_is_narrower() -> None:
    model = tiny_model()
    assert model.new_cache(2, 4).keys.dtype == torch.float32
    model.decoder.compute_dtype = torch.bfloat16
    cache = model.new_cache(2, 4)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    assert cache.keys.shape == (2, 2, 2, 4, 4)


@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 4, "mlp_only_layers": [2], "pregated": True}])
@pytest.mark.parametrize("router", ["softmax", "gshard"])
def test_recomputed_gradients_equal_kept_ones_when_training(router: str, changes: dict[str, Any]) -> None:
    (ids_BS,) = _ids(6)
    gradients = []
    for recompute in (False, True):
        model = tiny_model(router=router, router_jitter_noise=0.1, **changes).train().requires_grad_()
        model.decoder.recompute = recompute
        torch.manual_seed(3)
        out = model.decode(ids_BS)
        (model.logits(out.hidden_BSD).logsumexp(-1).sum() + sum(out.losses.values())).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_losses_are_the_mean_over_mixtures_when_some_layers_are_dense() -> None:
    model = tiny_model(num_hidden_layers=4, mlp_only_layers=[1])
    out = model.decode(_ids(7)[0])
    assert sorted(out.loads) == [0, 2, 3]
    assert out.losses.keys() == {"balance_loss", "z_loss"}


def test_losses_and_loads_are_empty_when_a_model_is_dense() -> None:
    out = tiny_model(**VARIANTS["dense"]).decode(_ids(7)[0])
    assert out.losses == {}
    assert out.loads == {}


@torch.no_grad()
def test_activations_are_bfloat16_near_float32_when_compute_dtype_is_set() -> None:
    model = tiny_model()
    (ids_BS,) = _ids(9)
    wide = model(ids_BS)
    model.decoder.compute_dtype = torch.bfloat16
    narrow = model(ids_BS)
    assert narrow.dtype == torch.bfloat16
    # One token routed elsewhere moves its whole row: hence the mean.
    assert float((narrow - wide).abs().mean() / wide.abs().mean()) < 0.05
