"""Ranks compute what one process computes: loss, every gradient, their norm, auxiliary losses, two optimizer steps."""

import pytest

from tests.comm.pool import Pools
from tests.parallel.twin import Changes, differences

ROUTERS: dict[str, Changes] = {
    "softmax": {},
    "normed": {"model.norm_topk_prob": True, "model.num_experts_per_tok": 3},
    "sigmoid": {"model.router": "sigmoid", "model.bias_update_speed": 0.1},
    "groups": {"model.router": "sigmoid", "model.n_group": 4, "model.topk_group": 2},
    "switch": {"model.router": "switch", "model.num_experts_per_tok": 1, "model.capacity_factor": 1.0},
    "gshard": {"model.router": "gshard", "model.capacity_factor": 1.1},
    "expert_choice": {"model.router": "expert_choice"},
    "capacity": {"model.capacity_factor": 0.7},
    "noise": {"model.router_jitter_noise": 0.2},
    "by_sequence": {"model.balance_loss_scope": "sequence"},
    "shared_expert": {"model.shared_expert_intermediate_size": 20, "model.shared_expert_gate": True},
}
LAYOUTS: dict[str, Changes] = {
    "experts": {"parallel.expert": 2},
    "replicas": {"parallel.expert": 1},
    "shares": {"parallel.expert": 1, "parallel.data_shard": 2},
    "experts_and_shares": {"parallel.expert": 2, "parallel.data_shard": 2},
    "heads": {"parallel.tensor": 2},
    "split_embedding": {"parallel.embedding": "split"},
}


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("layout", ["experts", "replicas", "heads"])
def test_two_ranks_equal_one_process_when_tokens_are_routed(router: str, layout: str, pools: Pools) -> None:
    assert pools(2).run(differences, ROUTERS[router] | LAYOUTS[layout]) == [{}, {}]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "changes",
    [
        {"train.micro_batch_size": 4},
        {"train.micro_batch_size": 1},
        {"train.batch_size": 3},
        {"train.recompute": True},
        {"model.mlp_only_layers": [0]},
        {"model.num_experts": 0, "parallel.expert": 1},
        {"model.tie_word_embeddings": True, "parallel.embedding": "whole"},
        {"model.pregated": True},
        {"optim.kind": "lion"},
        {"parallel.bucket_bytes": 1024},
    ],
    ids=lambda changes: "-".join(f"{key.partition('.')[2]}_{value}" for key, value in changes.items()),
)
def test_two_ranks_equal_one_process_when_a_recipe_differs(layout: str, changes: Changes, pools: Pools) -> None:
    assert pools(2).run(differences, LAYOUTS[layout] | changes) == [{}, {}]


WIDTHS: dict[str, Changes] = {
    "biases": {"model.attention_bias": True, "model.attention_output_bias": True},
    "norm_of_heads": {"model.qk_norm": "head"},
    "norm_of_width": {"model.qk_norm": "width", "model.clip_qkv": 0.5},
    "shared_expert": ROUTERS["shared_expert"],
    "one_row": {"train.batch_size": 1},
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_two_ranks_equal_one_process_when_they_share_heads(width: str, recompute: bool, pools: Pools) -> None:
    changes = {"parallel.tensor": 2, "train.recompute": recompute, **WIDTHS[width]}
    assert pools(2).run(differences, changes) == [{}, {}]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shard", [1, 2])
@pytest.mark.parametrize("expert", [1, 4])
def test_four_ranks_equal_one_process_when_they_share_heads(expert: int, shard: int, width: str, pools: Pools) -> None:
    changes = {"parallel.expert": expert, "parallel.data_shard": shard, "parallel.tensor": 2, **WIDTHS[width]}
    assert pools(4).run(differences, changes) == [{}] * 4


@pytest.mark.parametrize("shard", [1, 2, 4])
@pytest.mark.parametrize("expert", [1, 2, 4])
def test_four_ranks_equal_one_process_when_spread_in_two_dimensions(expert: int, shard: int, pools: Pools) -> None:
    changes = {"parallel.expert": expert, "parallel.data_shard": shard, "train.micro_batch_size": 4}
    for embedding in ("whole", "split"):
        assert pools(4).run(differences, changes | {"parallel.embedding": embedding}) == [{}] * 4


@pytest.mark.parametrize("kind", ["flat", "hierarchical", "auto"])
def test_four_ranks_equal_one_process_when_tokens_travel(kind: str, pools: Pools) -> None:
    assert pools(4).run(differences, {"parallel.expert": 4, "parallel.all_to_all": kind}) == [{}] * 4
