"""Which instruction set computes: what MOESAIC_ISA may say, and what is told where nothing was built."""

import importlib.machinery
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moesaic.errors import ConfigError, UnsupportedError
from moesaic.ops import backend
from moesaic.ops.cpu import library
from moesaic.ops.cpu.library import InstructionSet, check_status, choose_instruction_set
from moesaic.ops.mixture import mix_experts
from moesaic.testing.cases import MIXTURE_CASES, draw_mixture

COMPILER = os.environ.get("CXX", "c++")
BUILT = Path(library.__file__).parent / f"kernels{importlib.machinery.EXTENSION_SUFFIXES[0]}"
NEEDS_LIBRARY = pytest.mark.skipif(library.load_library() is None, reason="this installation has no compiled kernels")
SETS = (
    InstructionSet(0, "portable", None),
    InstructionSet(1, "wide", None),
    InstructionSet(2, "future", "the processor is too old"),
)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ask anew within each test, and leave nothing that was answered there."""
    monkeypatch.delenv("MOESAIC_ISA", raising=False)
    library._choose.cache_clear()
    yield
    library._choose.cache_clear()


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that a library of three instruction sets was built, the best one refused by the processor."""
    monkeypatch.setattr(library, "list_instruction_sets", lambda: SETS)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that nothing was built."""
    monkeypatch.setattr(library, "_open_library", lambda: library.NOT_BUILT)
    library.list_instruction_sets.cache_clear()
    yield
    library.list_instruction_sets.cache_clear()


@pytest.mark.usefixtures("sets")
def test_best_that_runs_is_chosen_when_nothing_is_asked_for() -> None:
    assert choose_instruction_set() == SETS[1]


@pytest.mark.usefixtures("sets")
def test_named_one_is_chosen_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in SETS[:2]:
        monkeypatch.setenv("MOESAIC_ISA", each.name)
        assert choose_instruction_set() == each


@pytest.mark.usefixtures("sets")
def test_unknown_one_is_refused_with_those_accepted_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_ISA", "axm")
    with pytest.raises(ConfigError, match="MOESAIC_ISA=axm is no instruction set") as caught:
        choose_instruction_set()
    assert caught.value.hint == "use one of portable, wide, future, none"


@pytest.mark.usefixtures("sets")
def test_unavailable_one_is_refused_with_the_reason_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_ISA", "future")
    with pytest.raises(UnsupportedError, match="cannot run here: the processor is too old") as caught:
        choose_instruction_set()
    assert caught.value.hint == "use one of portable, wide, none"


@pytest.mark.usefixtures("sets")
def test_operation_is_refused_when_the_variable_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw_mixture(MIXTURE_CASES["one token"], torch.float32)
    monkeypatch.setenv("MOESAIC_ISA", "axm")
    with pytest.raises(ConfigError, match="MOESAIC_ISA=axm"):
        mix_experts(*inputs.leaves, inputs.permutation)


@pytest.mark.usefixtures("no_library")
def test_torch_computes_and_the_reason_is_told_when_nothing_was_built() -> None:
    inputs = draw_mixture(MIXTURE_CASES["one token"], torch.float32)
    assert backend.choose_backend("mix_experts", inputs.hidden_TD) == "torch"
    assert mix_experts(*inputs.leaves, inputs.permutation).isfinite().all()
    for reasons in backend.explain_backends(inputs.hidden_TD).values():
        assert reasons["torch"] is None
        assert "no C++ compiler" in reasons.get("compiled", "no C++ compiler")
    assert "compiled" in backend.explain_backends(inputs.hidden_TD)["mix_experts"]


@pytest.mark.usefixtures("no_library")
def test_instruction_set_is_refused_when_nothing_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_ISA", "portable")
    with pytest.raises(UnsupportedError, match="this installation has no compiled kernels") as caught:
        choose_instruction_set()
    assert caught.value.hint == "install again with a C++ compiler"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Have the library looked for in a folder of the test."""
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    caches = library._open_library, library.list_instruction_sets
    for each in caches:
        each.cache_clear()
    yield tmp_path
    for each in caches:
        each.cache_clear()


def _name_of_library() -> str:
    return BUILT.name


def test_library_is_none_when_its_file_is_missing(folder: Path) -> None:
    assert library.load_library() is None
    assert "was not built" in str(choose_instruction_set())


def test_library_is_none_with_the_reason_when_its_file_is_broken(folder: Path) -> None:
    (folder / _name_of_library()).write_bytes(b"no library")
    assert library.load_library() is None
    assert "the library cannot be opened" in str(choose_instruction_set())


@NEEDS_LIBRARY
def test_library_is_none_with_the_reason_when_it_was_built_from_other_sources(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(BUILT, folder / _name_of_library())
    monkeypatch.setattr(library, "_INTERFACE", -1)
    assert library.load_library() is None
    assert "it was built from other sources" in str(choose_instruction_set())


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"there is no C++ compiler '{COMPILER}'")
def test_library_is_there_when_there_is_a_compiler() -> None:
    # An error in csrc leaves the kernels out as a missing compiler does, and the tests with them.
    assert library.load_library() is not None, "build it: python setup.py build_ext --inplace"


@NEEDS_LIBRARY
def test_torch_computes_when_the_kernels_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOESAIC_ISA", "none")
    tensor = torch.zeros(1, 1)
    assert backend.choose_backend("mix_experts", tensor) == "torch"
    reasons = backend.explain_backends(tensor)["mix_experts"]
    assert reasons["compiled"] == "MOESAIC_ISA=none turns the compiled kernels off"
    assert reasons["torch"] is None


@NEEDS_LIBRARY
@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1, 1, dtype=torch.float16), "take float32 and bfloat16, not float16"),
        (torch.zeros(1, 1, dtype=torch.float64), "take float32 and bfloat16, not float64"),
        (torch.zeros(1, 1, device="meta"), "run on cpu, the tensors are on meta"),
    ],
)
def test_kernels_are_not_chosen_when_the_tensor_is_not_for_them(tensor: torch.Tensor, reason: str) -> None:
    assert reason in str(backend.explain_backends(tensor)["mix_experts"]["compiled"])
    assert backend.choose_backend("mix_experts", tensor) == "torch"


@NEEDS_LIBRARY
def test_portable_set_is_there_and_runs_when_a_library_was_built() -> None:
    names = [each.name for each in library.list_instruction_sets()]
    assert names == ["portable", "avx512", "avx512_bf16", "amx"]
    assert library.list_instruction_sets()[0].refusal is None


def test_failed_allocation_is_a_memory_error_when_the_library_reports_it() -> None:
    with pytest.raises(MemoryError, match="out of memory while mixing"):
        check_status(3, "mixing")
    with pytest.raises(AssertionError, match="the dtype has no kernel while mixing"):
        check_status(2, "mixing")
    check_status(0, "mixing")
