"""What is refused of a repacked model: an index that is damaged, of another version, or of another model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.page_index import PAGES, PageIndex
from moesaic.checkpoint.repack import repack_model
from moesaic.checkpoint.stored import open_model
from moesaic.errors import CheckpointError, UnsupportedError
from moesaic.testing.tiny import tiny_model
from tests.checkpoint.stored import edit_json

FIRST = "pages-00001-of-00002.safetensors"


@pytest.fixture
def repacked(tmp_path: Path) -> Path:
    """A repacked model that may be damaged."""
    export_model(tiny_model(), tmp_path / "model")
    repack_model(tmp_path / "model", tmp_path / "new")
    return tmp_path / "new"


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / PAGES).read_text())
    change(content)
    (folder / PAGES).write_text(json.dumps(content))


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_index_is_read_as_it_was_written_when_saved(bits: int | None, tmp_path: Path) -> None:
    export_model(tiny_model(), tmp_path / "model")
    index = repack_model(tmp_path / "model", tmp_path / "new", bits)
    assert PageIndex.load(tmp_path / "new") == index


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(bits=5),
        lambda content: content.pop("record"),
        lambda content: content.update(record=[]),
        lambda content: content["record"]["fields"].update(down=7),
        lambda content: content["record"]["fields"]["down"].update(dtype="int7"),
        lambda content: content["record"]["fields"]["down"].update(dtype="int8"),
        lambda content: content["record"]["fields"]["down"].update(shape="wide"),
        lambda content: content["layers"].update({"one": content["layers"]["1"]}),
        lambda content: content["layers"]["1"].pop("checksums"),
        lambda content: content["layers"]["1"].update(strange=1),
        lambda content: content["layers"]["1"].update(name="../core.safetensors"),
        lambda content: content["layers"]["1"]["checksums"].append("no hex"),
        lambda content: content["layers"]["1"]["checksums"].append(17),
        lambda content: content["layers"]["1"].update(decibels={"down": ["loud"]}),
    ],
)
def test_index_is_refused_when_it_is_damaged(change: Callable[[dict[str, Any]], Any], repacked: Path) -> None:
    _edit(repacked, change)
    with pytest.raises(CheckpointError, match=r"pages\.json' is damaged: "):
        open_model(repacked)


@pytest.mark.parametrize("changes", [{"format": "moesaic-pages-2"}, {"checksum": "sha256"}, {"format": None}])
def test_index_is_refused_when_another_version_wrote_it(changes: dict[str, Any], repacked: Path) -> None:
    edit_json(repacked / PAGES, **changes)
    with pytest.raises(UnsupportedError, match="is of format "):
        open_model(repacked)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["layers"].pop("1"),
        lambda content: content["layers"]["1"]["checksums"].pop(),
        lambda content: content["record"].update(num_bytes=8192),
        lambda content: content["record"]["fields"]["down"].update(start=64),
        lambda content: content["record"]["fields"]["down"].update(shape=[12, 16]),
        lambda content: content["record"].update(fields={}),
        lambda content: content.update(bits=8),
    ],
)
def test_index_is_refused_when_it_tells_of_another_model(
    change: Callable[[dict[str, Any]], Any], repacked: Path
) -> None:
    _edit(repacked, change)
    with pytest.raises(CheckpointError, match=r"does not fit config\.json: it tells of other experts"):
        open_model(repacked)


def test_model_is_refused_when_a_file_of_pages_is_missing(repacked: Path) -> None:
    (repacked / FIRST).unlink()
    with pytest.raises(CheckpointError, match=f"cannot read '.*{FIRST}'"):
        open_model(repacked)


def test_model_is_refused_when_a_file_of_pages_is_cut_short(repacked: Path) -> None:
    (repacked / FIRST).write_bytes((repacked / FIRST).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"cannot read '.*{FIRST}'"):
        open_model(repacked)


def test_model_is_refused_when_files_of_pages_have_changed_names(repacked: Path) -> None:
    second = repacked / FIRST.replace("1", "2", 1)
    (repacked / FIRST).write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match="has no record of 4096 bytes for expert 0 of layer 0"):
        open_model(repacked)


def test_model_is_refused_when_its_dense_core_does_not_fit(repacked: Path) -> None:
    edit_json(repacked / "config.json", vocab_size=62)
    with pytest.raises(CheckpointError, match=r"has shape \[61, 16\], expected \[62, 16\]"):
        open_model(repacked)
    (repacked / "core.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read '.*core\.safetensors'"):
        open_model(repacked)


def test_dtype_is_that_of_the_core_when_repacked(repacked: Path) -> None:
    assert open_model(repacked).dtype == torch.float32
