"""DeepSpeed in its own process: the same results as ours where it is installed, a plain error where it breaks."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from moesaic.bench.candidate import CANDIDATES
from moesaic.bench.compare import check_equal
from moesaic.bench.deepspeed import DeepSpeedPeer, find_peer, share_within_capacity
from moesaic.bench.shape import Shape
from moesaic.bench.workload import Inputs, build_layers, draw_inputs
from moesaic.errors import MoesaicError

PEERS = Path(__file__).parents[2] / ".venv-peers"


@pytest.fixture(scope="module")
def peer() -> Iterator[DeepSpeedPeer]:
    if not (PEERS / "deepspeed.done").exists():
        pytest.skip("DeepSpeed has no environment here: make peers")
    with closing(DeepSpeedPeer(PEERS)) as started:
        yield started


def _stub(folder: Path, script: str) -> Path:
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chosen", [1, 2, 4])
@pytest.mark.parametrize("routing", ["uniform", "zipf"])
def test_deepspeed_computes_what_we_do_when_nothing_is_dropped(
    peer: DeepSpeedPeer, dtype: torch.dtype, chosen: int, routing: str
) -> None:
    shape = Shape(64, 32, 16, 8, chosen)
    layer, inputs = build_layers(shape, dtype, 1)[0], draw_inputs(shape, dtype, routing, seed=0)
    result_TD, grad_TD = peer.load(layer, inputs)
    ours = CANDIDATES["moesaic"].prepare(layer, shape)
    check_equal("result", result_TD, ours.forward(inputs).detach())
    expected = ours.backward(inputs)[0]
    assert expected is not None
    check_equal("gradient", grad_TD, expected)
    peer.step()


def test_peer_is_none_when_its_environment_was_not_made(tmp_path: Path) -> None:
    assert find_peer(tmp_path) is None


def test_last_words_are_told_when_the_process_ends(tmp_path: Path) -> None:
    with pytest.raises(MoesaicError, match="the process of DeepSpeed ended: cannot go on") as raised:
        find_peer(_stub(tmp_path, "echo first >&2; echo cannot go on >&2; exit 1"))
    assert raised.value.hint == "make its environment again: make peers"


def test_missing_package_is_named_when_the_environment_lacks_it(tmp_path: Path) -> None:
    # -S: without the packages of this environment, whatever it has.
    with pytest.raises(MoesaicError, match="No module named 'deepspeed'"):
        find_peer(_stub(tmp_path, f'exec {sys.executable} -S "$@"'))


def test_process_ends_when_the_peer_is_closed(tmp_path: Path) -> None:
    script = """echo '{"deepspeed": "1.0"}'; exec sleep 60"""
    peer = DeepSpeedPeer(_stub(tmp_path, script))
    assert peer.version == "1.0"
    peer.close()
    assert peer._process.returncode is not None


def test_share_is_that_of_the_pairs_that_find_room_when_loads_are_uneven() -> None:
    shape = Shape(32, 8, 8, 4, 1)
    ids_TK = torch.tensor([0] * 26 + [1, 2, 3] * 2).unsqueeze(1)
    inputs = Inputs(torch.empty(32, 8), ids_TK, torch.ones(32, 1), torch.empty(32, 8))
    assert share_within_capacity(inputs, shape) == (10 + 6) / 32  # 1.25 times the mean of eight
