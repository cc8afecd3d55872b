"""Messages between ranks as a benchmark: what is measured, and what is made of it."""

from typing import Any

import pytest

from moesaic.bench import chunks, comm, messages
from moesaic.bench.chunks import time_chunks, time_gradients
from moesaic.bench.comm import Asked, bench_comm, check_targets
from moesaic.bench.messages import time_all_to_all, time_buckets
from moesaic.comm.mesh import build_mesh
from moesaic.errors import MoesaicError
from tests.comm.pool import Pools


def _messages(longest_s: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    mesh = build_mesh(4, 1, 4, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "MESSAGE_BYTES", (64, 256))
        patch.setattr(messages, "_LONGEST_S", longest_s)
        return time_all_to_all(mesh, 1), time_buckets(mesh.everyone, 1)


def test_messages_are_timed_flat_and_in_two_hops_and_gradients_fused_when_measured(pools: Pools) -> None:
    first, *others = pools(4).run(_messages, 100.0)
    assert others == [first] * 3
    exchanged, summed = first
    assert [row["bytes_a_pair"] for row in exchanged] == [64, 256]
    assert all(row["ms"].keys() == {"flat", "hierarchical"} for row in exchanged)
    assert all(each > 0 for row in exchanged for each in row["ms"].values())
    unfused, *fused = summed
    assert unfused["bucket_bytes"] == "unfused"
    assert unfused["collectives"] > fused[-1]["collectives"] == 1
    assert len({row["bytes"] for row in summed}) == 1


def test_longer_messages_are_left_out_when_one_takes_too_long(pools: Pools) -> None:
    assert [row["bytes_a_pair"] for row in pools(4).run(_messages, 0.0)[0][0]] == [64]


def _layer() -> tuple[dict[str, Any], dict[str, Any]]:
    mesh = build_mesh(2, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_TOKENS": 16, "_WIDTH": 64, "_PROBE": 64, "_TRIES": 2}.items():
            patch.setattr(chunks, name, value)
        return time_chunks(mesh, 1), time_gradients(mesh, 1)


def test_layer_is_timed_in_any_number_of_chunks_and_the_same_is_chosen_by_all_when_measured(pools: Pools) -> None:
    first, second = pools(2).run(_layer)
    assert first == second
    layer, model = first
    assert layer["ms"].keys() == layer["predicted_ms"].keys() == {"1", "2", "4", "8"}
    assert layer["ms"][str(layer["best"])] == min(layer["ms"].values())
    assert layer["chosen"] in (1, 2, 4, 8)
    assert 0 < layer["share_of_messages"] < 1
    assert model["ms"].keys() == model["predicted_backward_ms"].keys()
    assert sum(model["released_bytes"]) <= sum(model["gradient_bytes"])


def test_targets_are_held_against_what_was_measured() -> None:
    exchanged = [
        {"bytes_a_pair": 64, "ms": {"flat": 4.0, "hierarchical": 1.0}},
        {"bytes_a_pair": 2**12, "ms": {"flat": 1.0, "hierarchical": 1.0}},
        {"bytes_a_pair": 2**14, "ms": {"flat": 1.0, "hierarchical": 9.0}},  # not a small one
    ]
    layer = {"ms": {"1": 13.0, "2": 10.0, "4": 9.0}, "chosen": 2, "best": 4}
    found = {
        row["figure"]: (row["found"], row["met"]) for row in check_targets({"all_to_all": exchanged, "chunks": layer})
    }
    assert found == {
        "flat / hierarchical, geometric mean up to 4096 bytes": (2.0, True),
        "whole / chosen chunks": (1.3, True),
        "chosen / best chunks": (1.111, False),
    }
    alone = check_targets({"all_to_all": [{"bytes_a_pair": 64, "ms": {"flat": 4.0}}]})
    assert [(row["found"], row["met"]) for row in alone] == [(None, False)]
    assert check_targets({}) == []


@pytest.mark.slow
def test_ranks_are_started_and_costs_grow_with_them_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comm, "GROWTH", (1,))
    told: list[str] = []
    result = bench_comm(Asked(2, 3, ("fits",)), told.append)
    assert (result["machine"]["ranks"], result["machine"]["nodes"]) == (2, 1)
    assert (
        result["cases"]["fits"].keys()
        == result["cases"]["growth"][1].keys()
        == {"all_to_all", "all_gather", "all_reduce"}
    )
    assert told == ["2 ranks: fits", "1 ranks: fits"]


@pytest.mark.slow
def test_reason_is_told_when_ranks_end() -> None:
    with pytest.raises(MoesaicError, match="the ranks of the benchmark ended: error: unknown case 'none'"):
        bench_comm(Asked(1, 3, ("none",)), lambda _: None)
