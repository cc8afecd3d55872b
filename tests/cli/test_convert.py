"""`moesaic convert`."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file

from moesaic.checkpoint import read_rate
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


def test_experts_are_written_as_records_and_read_back_when_asked_for(cli: Run, finished: Path, tmp_path: Path) -> None:
    answer = cli("convert", finished, tmp_path / "new", "--to", "moesaic")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == f"wrote {tmp_path / 'new'}: 8 experts of 12 KiB each (moesaic alone loads it)\n"
    first, second = (cli("generate", folder, "def ", "--max-tokens", "8") for folder in (finished, tmp_path / "new"))
    assert first.code == 0
    assert first.out == second.out
    assert cli("convert", tmp_path / "new", tmp_path / "back").code == 0
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "back", finished / "model"))
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("bits", ["8", "4"])
def test_cost_of_rounding_is_printed_by_layer_when_experts_get_few_bits(
    bits: str, cli: Run, finished: Path, tmp_path: Path
) -> None:
    answer = cli("convert", finished, tmp_path / "new", "--to", "moesaic", "--bits", bits)
    assert (answer.code, answer.out) == (0, "")
    heading, columns, *layers, last = answer.err.splitlines()
    assert heading == f"signal to noise of weights of {bits} bits, dB; experts of a layer"
    assert columns.split() == ["layer", "gate_up,", "mean", "gate_up,", "worst", "down,", "mean", "down,", "worst"]
    assert [line.split()[0] for line in layers] == ["0", "1"]
    assert all(float(cell) > 15 for line in layers for cell in line.split()[1:])
    assert last.startswith("wrote ")
    assert cli("generate", tmp_path / "new", "def ", "--max-tokens", "8").code == 0
    check_two_lines(cli("convert", tmp_path / "new", tmp_path / "back"), f"has experts of {bits} bits")


def test_dense_core_is_rounded_and_its_cost_printed_when_asked_for(cli: Run, finished: Path, tmp_path: Path) -> None:
    answer = cli("convert", finished, tmp_path / "new", "--to", "moesaic", "--bits", "8", "--core-bits", "8")
    assert (answer.code, answer.out) == (0, "")
    cost = answer.err.splitlines()[-2]
    assert re.fullmatch(r"dense core, \d+ matrices of 8 bits: mean 4\d\.\d, worst [34]\d\.\d", cost)
    assert cli("generate", tmp_path / "new", "def ", "--max-tokens", "8").code == 0
    assert re.search(r"core bits +8 *\n worst core decibels +[34]\d", cli("inspect", tmp_path / "new").out)
    check_two_lines(cli("convert", tmp_path / "new", tmp_path / "back"), "has experts of 8 bits")


def test_rates_are_told_beforehand_when_there_are_many_bytes(
    cli: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_rate, "measure_read_rates", lambda _: read_rate.ReadRates(2**30, 2**30))
    answer = cli("convert", finished, tmp_path / "new", "--to", "moesaic")
    assert answer.err.startswith(
        "experts are read at 1 GiB/s where they are, at 1 GiB/s as records: records are not worth the space for speed"
    )
    monkeypatch.setattr(read_rate, "measure_read_rates", lambda _: read_rate.ReadRates(2**30, 2**31))
    answer = cli("convert", finished, tmp_path / "newer", "--to", "moesaic")
    assert answer.err.startswith("experts are read at 1 GiB/s where they are, at 2 GiB/s as records\n")


def test_few_bits_are_refused_in_two_lines_when_they_cannot_be_written(
    cli: Run, finished: Path, tmp_path: Path
) -> None:
    check_two_lines(cli("convert", finished, tmp_path / "new", "--bits", "8"), "--to hf writes no weights of few bits")
    check_two_lines(cli("convert", finished, tmp_path / "new", "--core-bits", "8"), "--to hf writes no weights of few")
    check_two_lines(cli("convert", finished, tmp_path / "new", "--to", "moesaic", "--bits", "5"), "experts of 5 bits")
    records = "convert", finished, tmp_path / "new", "--to", "moesaic"
    check_two_lines(cli(*records, "--core-bits", "8"), "and experts that are not rounded")
    check_two_lines(cli(*records, "--bits", "8", "--core-bits", "4"), "a dense core of 4 bits")
    check_two_lines(
        cli("convert", finished, tmp_path / "new", "--to", "moesaic", "--bits", "8", "--dtype", "float16"), "float16"
    )
    assert list(tmp_path.iterdir()) == []


def test_way_on_is_told_when_interrupted(
    cli: Run, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moesaic.checkpoint.repack.write_settings", interrupt)
    answer = cli("convert", finished, tmp_path / "new", "--to", "moesaic")
    assert (answer.code, answer.err) == (130, "interrupted; the same command goes on where it was\n")
