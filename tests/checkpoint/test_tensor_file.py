"""Safetensors files written tensor by tensor."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from moesaic.checkpoint.tensor_file import write_tensor_file
from moesaic.memory.page import ALIGNMENT

TENSORS = {
    "a": torch.randn(3, 5).bfloat16(),
    "b/scalar": torch.tensor(4.0),
    "c": torch.randn(7, 2).double().t(),
    "d": torch.arange(200, dtype=torch.uint8),
    "e": torch.randn(0, 4).half(),
}
ENTRIES = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}


def test_safetensors_reads_what_is_written_when_dtypes_and_shapes_differ(tmp_path: Path) -> None:
    checksums = write_tensor_file(tmp_path / "file", ENTRIES, TENSORS.values())
    found = load_file(tmp_path / "file")
    assert found.keys() == TENSORS.keys()
    for (name, tensor), checksum in zip(TENSORS.items(), checksums, strict=True):
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
        assert checksum == zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("num_tensors", [0, 1, 60, 100])
def test_values_begin_at_a_multiple_of_the_alignment_when_the_header_is_of_any_length(
    num_tensors: int, tmp_path: Path
) -> None:
    names = [f"tensor-{index}" for index in range(num_tensors)]
    write_tensor_file(
        tmp_path / "file", dict.fromkeys(names, ((16,), torch.uint8)), (torch.ones(16).byte() for _ in names)
    )
    content = (tmp_path / "file").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert header % ALIGNMENT == 0
    assert content[header:] == b"\1" * 16 * num_tensors
    assert len(load_file(tmp_path / "file")) == num_tensors


def test_one_tensor_is_asked_for_when_those_before_it_are_written(tmp_path: Path) -> None:
    buffer = torch.empty(4)

    def tensors() -> Iterator[Tensor]:
        for value in (1.0, 2.0):
            yield buffer.fill_(value)

    write_tensor_file(tmp_path / "file", dict.fromkeys("ab", ((4,), torch.float32)), tensors())
    found = load_file(tmp_path / "file")
    assert (found["a"].tolist(), found["b"].tolist()) == ([1.0] * 4, [2.0] * 4)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_old_file_stays_and_nothing_else_when_writing_fails(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_tensor_file(tmp_path / "file", ENTRIES, TENSORS.values())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_file_is_refused_when_a_tensor_is_not_as_its_entry_says(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="'a' is as its entry says"):
        write_tensor_file(tmp_path / "file", {"a": ((2,), torch.float32)}, [torch.ones(3)])
    assert list(tmp_path.iterdir()) == []
