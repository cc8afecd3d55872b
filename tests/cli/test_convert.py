"""`moesaic convert`."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.command import Run, check_two_lines


@pytest.mark.parametrize("source", [".", "model", "checkpoints/step-00000008"])
def test_weights_stay_bit_for_bit_when_converted_from(source: str, cli: Run, finished: Path, tmp_path: Path) -> None:
    answer = cli("convert", finished / source, tmp_path / "new", "--to", "hf")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == f"wrote {tmp_path / 'new'} (transformers and moesaic load it)\n"
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "new", finished / "model"))
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert (tmp_path / "new" / "tokenizer.json").is_file()


def test_weights_are_rounded_when_a_dtype_is_given(cli: Run, finished: Path, tmp_path: Path) -> None:
    assert cli("convert", finished, tmp_path / "new", "--dtype", "bfloat16").code == 0
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in found.values()} == {"torch.bfloat16"}


def test_convert_is_refused_and_changes_nothing_when_the_target_exists(
    cli: Run, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    check_two_lines(cli("convert", finished, tmp_path), "exists already")
    check_two_lines(cli("convert", finished, tmp_path / "file"), "exists already")
    check_two_lines(cli("convert", finished, tmp_path / "file" / "new"), "cannot write")
    assert (tmp_path / "file").read_text() == "mine"


def test_convert_is_refused_and_writes_nothing_when_the_source_or_dtype_is_unknown(
    cli: Run, finished: Path, tmp_path: Path
) -> None:
    check_two_lines(cli("convert", tmp_path / "none", tmp_path / "new"), "no model folder at")
    check_two_lines(cli("convert", finished, tmp_path / "new", "--dtype", "int8"), "unknown dtype 'int8'")
    assert list(tmp_path.iterdir()) == []
