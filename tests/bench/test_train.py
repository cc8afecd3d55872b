"""The training benchmark: equal work, a result that says what was done."""

import json
import sys
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moesaic.bench import train as room
from moesaic.bench.peer import build_peer
from moesaic.bench.train import Shape, bench_train
from moesaic.errors import ConfigError, MoesaicError

SMALL = Shape(256, 64, 32, 4, 2)


@pytest.fixture
def _small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BLOCKS", (SMALL,))
    monkeypatch.setattr(room, "MODELS", (SMALL,))


@pytest.mark.usefixtures("_small_shapes")
def test_result_holds_machine_shapes_times_and_ratios_when_all_cases_are_measured() -> None:
    result = json.loads(json.dumps(bench_train(3)))
    assert result.keys() == {"benchmark", "machine", "repeats", "cases", "startup"}
    assert (result["benchmark"], result["repeats"]) == ("train", 3)
    assert result["machine"]["transformers"]
    kinds = [(case["level"], case["dtype"]) for case in result["cases"]]
    assert kinds == [(level, dtype) for dtype in ("float32", "bfloat16") for level in ("block", "model")]
    for case in result["cases"]:
        assert [case[letter] for letter in "TDFEK"] == [256, 64, 32, 4, 2]
        names = ["moesaic", "transformers"] + ["dense"] * (case["level"] == "block")
        assert list(case["times"]) == names
        assert all(each.keys() == {"median_ms", "iqr_ms"} for each in case["times"].values())
        assert case["over_transformers"] > 0
    assert list(result["startup"]) == [
        "import moesaic",
        "moesaic --help",
        "a misspelt key",
        "python -c pass",
    ]
    assert all(each["median_ms"] > 0 for each in result["startup"].values())


def test_ratio_is_the_median_of_the_other_over_ours_when_a_case_is_told() -> None:
    times = {"moesaic": [0.002] * 3, "transformers": [0.006] * 3, "dense": [0.001] * 3}
    case = room._case("block", SMALL, torch.float32, times)
    assert (case["over_transformers"], case["over_dense"]) == (3.0, 0.5)
    assert case["times"]["moesaic"] == {"median_ms": 2.0, "iqr_ms": 0.0}


@pytest.mark.usefixtures("_small_shapes")
@pytest.mark.parametrize("level", ["BLOCKS", "MODELS"])
def test_nothing_is_timed_when_the_outputs_differ(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_other_peer(config: Any) -> Any:
        peer = build_peer(config)
        # The twin's weights are copied over ours by name, so the difference is put into a setting.
        for layer in peer.model.layers:
            layer.mlp.gate.top_k = 1
        return peer

    timed: list[Any] = []
    monkeypatch.setattr(room, "build_peer", build_other_peer)
    monkeypatch.setattr(room, "measure", lambda *arguments: timed.append(arguments))
    monkeypatch.setattr(room, "BLOCKS" if level == "MODELS" else "MODELS", ())
    with pytest.raises(MoesaicError, match=r"outputs differ by .* more than 1e-05"):
        bench_train(3)
    assert timed == []


def test_peer_is_refused_with_the_package_to_install_when_transformers_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="the peer of this benchmark is transformers") as raised:
        build_peer(SMALL.config())
    assert raised.value.hint == "pip install transformers"


def test_dense_floor_does_the_same_products_as_the_block_when_stepping(monkeypatch: pytest.MonkeyPatch) -> None:
    flops: dict[str, int] = {}

    def count(steps: dict[str, Any], repeats: int) -> dict[str, list[float]]:
        for name, step in steps.items():
            with FlopCounterMode(display=False) as counter:
                step()
            flops[name] = counter.get_total_flops()
        return {name: [0.001] * 3 for name in steps}

    monkeypatch.setattr(room, "measure", count)
    room._bench_block(SMALL, torch.float32, 3)
    router = 3 * 2 * SMALL.tokens * SMALL.width * SMALL.experts
    assert flops["dense"] == 3 * 2 * SMALL.tokens * SMALL.chosen * SMALL.expert_size
    # Our own kernels are no torch operators, which the counter could see.
    assert flops["moesaic"] in (router, flops["dense"] + router)
