"""A checkpoint of transformers read, exported and read again by transformers: not one bit changes."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.load import load_model
from moesaic.testing.tolerance import is_close
from tests.checkpoint.stored import read_folder, write_folder
from tests.models.drawn_config import FAMILIES, draw_config
from tests.models.foreign import build_foreign, foreign_logits, load_foreign, save_foreign

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZE = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 8,
}
MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")


def _assert_bit_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=20)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), shard_bytes=st.sampled_from([100, 3000, 10**9]))
def test_round_trip_keeps_every_bit_when_a_config_is_drawn(
    family: str, data: st.DataObject, dtype: torch.dtype, shard_bytes: int
) -> None:
    config = data.draw(draw_config(family))
    theirs = build_foreign(family, config, dtype)
    ids_BS = torch.randint(config["vocab_size"], (1, 7))
    with tempfile.TemporaryDirectory() as name:
        before, after = Path(name) / "before", Path(name) / "after"
        save_foreign(theirs, before)
        assert export_model(load_model(before), after, shard_bytes=shard_bytes)
        _assert_bit_equal(read_folder(after), read_folder(before))
        first, second = load_foreign(before, dtype), load_foreign(after, dtype)
    _assert_bit_equal(second.state_dict(), theirs.state_dict())
    # Close, not equal: where the weights lie in memory may change the last bit of their products.
    assert is_close(foreign_logits(second.float(), ids_BS), foreign_logits(first.float(), ids_BS))


@pytest.mark.parametrize("family", MIXTURES)
def test_fused_expert_tensors_load_as_the_split_ones_do_when_a_folder_holds_them(family: str, tmp_path: Path) -> None:
    theirs = build_foreign(family, SIZE)
    in_memory = theirs.state_dict()
    assert any(name.endswith("experts.gate_up_proj") for name in in_memory), "transformers fuses in memory"

    save_foreign(theirs, tmp_path / "split")
    write_folder(tmp_path / "fused", {**theirs.config.to_dict(), "dtype": "float32"}, in_memory)
    split, fused = load_model(tmp_path / "split"), load_model(tmp_path / "fused")
    _assert_bit_equal(fused.state_dict(), split.state_dict())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_loaded_weights_are_rounded_once_when_another_dtype_is_asked_for(dtype: str, tmp_path: Path) -> None:
    theirs = build_foreign("qwen3_moe", SIZE)
    save_foreign(theirs, tmp_path)
    stored, loaded = load_model(tmp_path), load_model(tmp_path, dtype)
    wanted = getattr(torch, dtype)
    _assert_bit_equal(loaded.state_dict(), {k: v.to(wanted) for k, v in stored.state_dict().items()})
