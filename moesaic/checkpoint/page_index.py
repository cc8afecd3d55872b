"""The index of a repacked model: what a record holds, and where each page is, with its checksum.

A repacked model is a folder of

    pages.json                         the index
    pages-00001-of-00016.safetensors   the first layer with experts: for each, its record as a tensor of bytes
    core.safetensors                   the dense core, by the names of the family; of a linear map of 8 bits,
                                       NAME.blocks and NAME.scales in place of NAME.weight
    config.json, tokenizer.json, ...   as in any folder of the family

A record lies at a multiple of `ALIGNMENT` bytes and takes one: it is read straight into a slot. The core has no name
that other programs look for: without its experts it would be another model.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from moesaic.checkpoint.folder import read_json
from moesaic.checkpoint.tensors import DTYPES, TensorFolder
from moesaic.errors import CheckpointError, UnsupportedError
from moesaic.flush import replace_text
from moesaic.memory.page import Field, Page, PageLayout, Piece
from moesaic.nn.moe.experts import Experts
from moesaic.ops.quant import quantised_shapes

PAGES = "pages.json"
CORE = "core.safetensors"
_FORMAT = "moesaic-pages-1"
_CHECKSUM = "crc32"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


@dataclass(frozen=True)
class PageFile:
    """The file of a layer's pages.

    Attributes:
        name: of the file, in the folder of the index.
        checksums: zlib.crc32 of each expert's record, 8 hexadecimal digits.
        decibels: by field, of each expert, `signal_to_noise_db` of its rounded weights, to two digits; None: they are
            what they were. Empty for weights that were not rounded.
    """

    name: str
    checksums: list[str]
    decibels: dict[str, list[float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class PageIndex:
    """What the index says.

    Attributes:
        layout: of each record.
        bits: of its weights, 8 or 4; None: floats.
        files: by layer.
        core_bits: of the linear maps of the dense core, 8; None: floats.
        core_decibels: of each of them by the stored name of its floats, as `PageFile.decibels`.
    """

    layout: PageLayout
    bits: int | None
    files: dict[int, PageFile]
    core_bits: int | None = None
    core_decibels: dict[str, float | None] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write the index; OSError if it cannot be."""
        fields = {
            name: {"start": each.start, "shape": list(each.shape), "dtype": str(each.dtype).removeprefix("torch.")}
            for name, each in self.layout.fields.items()
        }
        content = {
            "format": _FORMAT,
            "bits": self.bits,
            "core_bits": self.core_bits,
            "checksum": _CHECKSUM,
            "record": {"num_bytes": self.layout.num_bytes, "fields": fields},
            "layers": {str(layer): asdict(file) for layer, file in self.files.items()},
            "core_decibels": self.core_decibels,
        }
        replace_text(folder / PAGES, json.dumps(content, indent=1) + "\n")

    @staticmethod
    def load(folder: Path) -> "PageIndex":
        """Read the index of a folder.

        Raises:
            CheckpointError: it is damaged.
            UnsupportedError: another version wrote it.
        """
        content = read_json(folder / PAGES)
        if (content.get("format"), content.get("checksum")) != (_FORMAT, _CHECKSUM):
            raise UnsupportedError(
                f"'{folder / PAGES}' is of format {content.get('format')!r} with checksum {content.get('checksum')!r}, "
                f"accepted are '{_FORMAT}' with '{_CHECKSUM}'",
                "convert the model again, or use the version of moesaic that wrote it",
            )
        try:
            return _parse(content)
        except (AttributeError, KeyError, TypeError, ValueError) as failure:
            raise CheckpointError(
                f"'{folder / PAGES}' is damaged: {type(failure).__name__}: {failure}",
                "fetch it again, or convert the model again",
            ) from None

    def find_pages(self, folder: Path) -> dict[int, list[Page]]:
        """Return the page of each expert by layer, a single piece.

        Raises:
            CheckpointError: a file is missing, damaged or not the one that the index tells of.
        """
        names = [file.name for file in self.files.values()]
        stored = TensorFolder(folder, names).stored
        pages: dict[int, list[Page]] = {}
        for layer, file in self.files.items():
            pages[layer] = []
            for expert, checksum in enumerate(file.checksums):
                tensor = stored.get(record_name(layer, expert))
                if tensor is None or tensor.extent.num_bytes != self.layout.num_bytes:
                    raise CheckpointError(
                        f"'{folder / file.name}' has no record of {self.layout.num_bytes} bytes for expert {expert} of "
                        f"layer {layer}",
                        f"the file is not the one that {PAGES} tells of; fetch both again",
                    )
                pages[layer].append((Piece(tensor.extent, torch.uint8, torch.uint8, 0, int(checksum, 16)),))
        return pages

    def check_fits(self, folder: Path, experts: Mapping[int, Experts]) -> None:
        """Check that the pages are of the experts of a model, by layer.

        Raises:
            CheckpointError: they are others.
        """
        found = {layer: len(file.checksums) for layer, file in self.files.items()}
        expected = {layer: len(each.down) for layer, each in experts.items()}
        dtype = next((each.dtype for each in self.layout.fields.values()), torch.float32)
        if found != expected or any(lay_out_record(each, self.bits, dtype) != self.layout for each in experts.values()):
            raise CheckpointError(
                f"'{folder / PAGES}' does not fit config.json: it tells of other experts",
                "index and config.json belong to different models, or one was edited; fetch them again",
            )


def record_name(layer: int, expert: int) -> str:
    """Return the name of a record in its file."""
    return f"layers.{layer}.experts.{expert}"


def lay_out_record(experts: Experts, bits: int | None, dtype: torch.dtype) -> PageLayout:
    """Return the record of one of the experts of a layer, with weights of so many bits, or None: of a dtype."""
    if bits is None:
        return PageLayout.of({name: (tuple(each.shape[1:]), dtype) for name, each in experts.named_parameters()})
    width, hidden_width = experts.down.shape[1:]
    return PageLayout.of(quantised_shapes(width, hidden_width, bits))


def _parse(content: Mapping[str, Any]) -> PageIndex:
    """Build an index; what is wrong with it raises whatever Python has for it."""
    if content["bits"] not in (None, 8, 4):
        raise ValueError(f"weights of {content['bits']!r} bits")
    core_bits, core_decibels = content.get("core_bits"), content.get("core_decibels", {})
    if core_bits not in (None, 8) or (core_bits is not None and content["bits"] is None):
        raise ValueError(f"a dense core of {core_bits!r} bits beside experts of {content['bits']!r}")
    sum(decibels for decibels in core_decibels.values() if decibels is not None)
    record = content["record"]
    fields = {
        name: Field(int(each["start"]), tuple(map(int, each["shape"])), _DTYPES[each["dtype"]])
        for name, each in record["fields"].items()
    }
    if content["bits"] is None and not all(each.dtype.is_floating_point for each in fields.values()):
        raise ValueError("weights that are neither floats nor of few bits")
    files = {int(layer): PageFile(**file) for layer, file in content["layers"].items()}
    for file in files.values():
        if Path(file.name).name != file.name:
            raise ValueError(f"{file.name!r} is no name of a file")
        for checksum in file.checksums:
            int(checksum, 16)
        for each in file.decibels.values():
            sum(decibels for decibels in each if decibels is not None)
    layout = PageLayout(fields, int(record["num_bytes"]))
    return PageIndex(layout, content["bits"], files, core_bits, core_decibels)
