"""`moesaic doctor`."""

import json
from collections.abc import Iterator

import pytest
import torch

from moesaic.ops import diagnosis
from moesaic.ops.cpu import library
from moesaic.ops.cpu.library import InstructionSet
from tests.cli.command import Run, check_two_lines


@pytest.fixture(autouse=True)
def _own_answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three instruction sets, the best one refused; what is asked here is forgotten."""
    sets = (
        InstructionSet(0, "portable", None),
        InstructionSet(1, "wide", None),
        InstructionSet(2, "future", "the processor is too old"),
    )
    _pretend(monkeypatch, sets)
    monkeypatch.delenv("MOESAIC_ISA", raising=False)
    library._choose.cache_clear()
    yield
    library._choose.cache_clear()


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library at all."""
    monkeypatch.setattr(library, "_open_library", lambda: library.NOT_BUILT)
    _pretend(monkeypatch, ())


def _pretend(monkeypatch: pytest.MonkeyPatch, sets: tuple[InstructionSet, ...]) -> None:
    for module in (library, diagnosis):
        monkeypatch.setattr(module, "list_instruction_sets", lambda: sets)


def test_one_object_stands_alone_when_json_is_asked_for(cli: Run) -> None:
    answer = cli("doctor", "--json")
    assert (answer.code, answer.err) == (0, "")
    facts = json.loads(answer.out)
    assert facts["machine"]["threads"] == torch.get_num_threads()
    assert facts["machine"]["torch"] == torch.__version__
    assert facts["machine"]["memory_bytes"] > 2**20
    assert facts["instruction_set"] == "wide"
    assert facts["instruction_sets"][2] == {"name": "future", "refusal": "the processor is too old"}
    on_cpu = [row for row in facts["operations"] if row["device"] == "cpu"]
    assert {(row["operation"], row["dtype"]) for row in on_cpu} >= {
        ("mix_experts", "float32"),
        ("mix_experts", "bfloat16"),
        ("expert_mlp", "float32"),
    }
    assert {row["chosen"] for row in on_cpu if row["operation"] == "mix_experts"} == {"compiled"}
    assert {each["name"] for each in facts["packages"]} == {"transformers", "triton", "datasets", "tensorboard"}


def test_everything_is_told_to_people_when_nothing_is_wrong(cli: Run) -> None:
    answer = cli("doctor")
    assert (answer.code, answer.err) == (0, "")
    lines = {line.split("  ")[0].strip(): " ".join(line.split()) for line in answer.out.splitlines()}
    assert lines["wide"] == "wide yes, and is used"
    assert lines["portable"] == "portable yes"
    assert lines["future"] == "future no: the processor is too old"
    assert lines["mix_experts"].startswith("mix_experts cpu bfloat16 compiled")
    assert lines["torch"] == f"torch {torch.__version__}"
    assert "tensorboard" in lines


def test_package_is_called_missing_with_its_use_when_it_is_not_installed(
    cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moesaic.cli.doctor._version", lambda package: None if package == "datasets" else "1.2.3")
    lines = [" ".join(line.split()) for line in cli("doctor").out.splitlines()]
    assert "datasets not installed training on parquet files and hub datasets" in lines
    assert any(line.startswith("tensorboard 1.2.3 ") for line in lines)


@pytest.mark.usefixtures("not_built")
def test_way_to_the_kernels_is_told_when_they_are_missing(cli: Run) -> None:
    answer = cli("doctor")
    assert (answer.code, answer.err) == (0, "")
    assert "compiled kernels: missing, so torch computes" in answer.out
    assert "install a C++ compiler" in answer.out
    assert "compiled: the library was not built" in " ".join(answer.out.split())
    facts = json.loads(cli("doctor", "--json").out)
    assert (facts["kernels_built"], facts["instruction_set"]) == (False, None)
    assert {row["chosen"] for row in facts["operations"] if row["device"] == "cpu"} == {"torch"}


def test_kernels_are_said_to_be_off_when_the_variable_says_so(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_ISA", "none")
    answer = cli("doctor")
    assert answer.code == 0
    assert "MOESAIC_ISA=none turns the compiled kernels off\n" in answer.out
    assert "yes, and is used" not in answer.out


@pytest.mark.parametrize("flags", [(), ("--json",)])
@pytest.mark.parametrize(
    ("name", "told"), [("axm", "MOESAIC_ISA=axm is no instruction set"), ("future", "the processor is too old")]
)
def test_variable_is_refused_in_two_lines_when_it_is_wrong(
    name: str, told: str, flags: tuple[str, ...], cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESAIC_ISA", name)
    check_two_lines(cli("doctor", *flags), told)
