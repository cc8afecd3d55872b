"""Writing a model with its experts as aligned records, expert by expert.

A layer with experts is a file. A conversion that was ended goes on after the last whole one, to the same bytes.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic import __version__
from moesaic.checkpoint.dense_core import CoreWriter
from moesaic.checkpoint.encode import Encoder
from moesaic.checkpoint.export import write_settings
from moesaic.checkpoint.folder import config_file, find_tokenizer
from moesaic.checkpoint.lay_out import lay_out_pages
from moesaic.checkpoint.load import choose_dtype
from moesaic.checkpoint.page_index import CORE, PAGES, PageFile, PageIndex, lay_out_record, record_name
from moesaic.checkpoint.records import read_records
from moesaic.checkpoint.resumable import Unfinished, resumable_folder
from moesaic.checkpoint.stored import StoredModel, open_model
from moesaic.checkpoint.tensor_file import write_tensor_file
from moesaic.errors import ConfigError, UnsupportedError
from moesaic.memory.disk import Disk
from moesaic.models.config_json import write_config
from moesaic.models.table import FAMILIES
from moesaic.ops.quant import TOKEN_DTYPES

# Is told how many of how many are done.
Progress = Callable[[int, int], None]


def repack_model(
    folder: Path,
    target: Path,
    bits: int | None = None,
    dtype: str | None = None,
    on_progress: Progress = lambda done, total: None,
    core_bits: int | None = None,
) -> PageIndex:
    """Write a repacked model, as `page_index` tells.

    In memory are two experts as they are read, the record of one, what rounding it takes, and one tensor of the core.

    Args:
        folder: of `find_model`.
        target: must not exist; it is there when it is whole.
        bits: of the experts' weights, 8 or 4; None: floats.
        dtype: as for `load_model`: of all weights; with bits, of the dense core.
        on_progress: told how many experts of how many are written.
        core_bits: of the linear maps of the dense core, 8, beside experts of few bits; None: floats.

    Returns:
        The index that was written.

    Raises:
        ConfigError: there is no such dtype, or no weights of so many bits, or only the dense core is to be rounded.
        UnsupportedError: the model has no experts, or such of a few bits already; or they cannot be rounded.
        CheckpointError: the model cannot be read, as `open_model`, or the folder not be written.
    """
    asked = choose_dtype(dtype)
    if bits not in (None, 8, 4):
        raise ConfigError(f"experts of {bits} bits were asked for", "ask for 8 or 4")
    if core_bits not in (None, 8):
        raise ConfigError(f"a dense core of {core_bits} bits was asked for", "ask for 8")
    if core_bits is not None and bits is None:
        raise ConfigError("a dense core of 8 bits was asked for, and experts that are not rounded", "add --bits 8")
    stored = open_model(folder)
    kept = asked or stored.dtype
    _check(stored, bits, kept)
    layout = lay_out_record(next(iter(stored.model.moe_layers().values())).experts, bits, kept)
    config = write_config(stored.model.config, _plain(kept))
    disk = Disk()
    try:
        with resumable_folder(target, _plan(stored, bits, core_bits, kept)) as unfinished:
            layers = _LayerWriter(stored, kept, Encoder(layout, bits), disk, on_progress)
            files = layers.write(unfinished)
            core = CoreWriter(stored, FAMILIES.get(config["model_type"]), kept, core_bits, disk)
            core.write(unfinished.folder / CORE)
            write_settings(unfinished.folder, config, find_tokenizer(folder))
            index = PageIndex(layout, bits, files, core_bits, core.decibels)
            index.save(unfinished.folder)
    finally:
        disk.close()
    return index


class _LayerWriter:
    """Writes the files of pages, one a layer."""

    def __init__(self, stored: StoredModel, kept: torch.dtype, encoder: Encoder, disk: Disk, tell: Progress) -> None:
        self._encoder = encoder
        self._disk = disk
        # Records are read as they are, and weights to be rounded to a few bits are not rounded before.
        is_as_stored = stored.repacked is not None or encoder.bits is not None
        self._layout, self._pages = lay_out_pages(stored, stored.dtype if is_as_stored else kept)
        self._tell = tell
        self._num_written = 0

    def write(self, unfinished: Unfinished) -> dict[int, PageFile]:
        """Write the layers that are not there yet, and return what is known of each."""
        files: dict[int, PageFile] = {}
        for number, (layer, pages) in enumerate(self._pages.items(), start=1):
            name = f"pages-{number:05d}-of-{len(self._pages):05d}.safetensors"
            if str(layer) in unfinished.done and (unfinished.folder / name).is_file():
                self._count(len(pages))
            else:
                unfinished.mark(str(layer), asdict(self._write_layer(layer, unfinished.folder / name)))
            files[layer] = PageFile(**unfinished.done[str(layer)])
        return files

    def _write_layer(self, layer: int, path: Path) -> PageFile:
        decibels: dict[str, list[float | None]] = {}

        def records() -> Iterator[Tensor]:
            for expert, weights in enumerate(read_records(self._pages[layer], self._layout, self._disk)):
                try:
                    costs = self._encoder.encode(weights)
                except UnsupportedError as failure:
                    text = f"expert {expert} of layer {layer}: {failure.text}"
                    raise UnsupportedError(text, failure.hint) from None
                for name, cost in costs.items():
                    decibels.setdefault(name, []).append(cost)
                yield self._encoder.record
                self._count(1)

        names = [record_name(layer, expert) for expert in range(len(self._pages[layer]))]
        shape = (self._encoder.record.numel(),)
        checksums = write_tensor_file(path, dict.fromkeys(names, (shape, torch.uint8)), records())
        return PageFile(path.name, [f"{checksum:08x}" for checksum in checksums], decibels)

    def _count(self, num_experts: int) -> None:
        self._num_written += num_experts
        self._tell(self._num_written, sum(len(each) for each in self._pages.values()))


def _check(stored: StoredModel, bits: int | None, kept: torch.dtype) -> None:
    folder = stored.tensors.folder
    stored.check_exact()
    if not stored.model.moe_layers():
        raise UnsupportedError(f"'{folder}' has no experts: there is nothing to repack", "use it as it is")
    if bits is not None and kept not in TOKEN_DTYPES:
        raise UnsupportedError(
            f"'{folder}' is of {_plain(kept)}, in which experts of {bits} bits are not computed",
            "add --dtype bfloat16 or --dtype float32, for all but the experts",
        )


def _plan(stored: StoredModel, bits: int | None, core_bits: int | None, kept: torch.dtype) -> dict[str, Any]:
    """Return what decides every byte that is written."""
    folder = stored.tensors.folder
    files = stored.tensors.files | {config_file(folder)}
    files |= {folder / PAGES} if stored.repacked is not None else set()
    stamps = {str(file.relative_to(folder)): file.stat() for file in sorted(files)}
    return {
        "version": __version__,
        "source": str(folder.resolve()),
        "files": {name: [stamp.st_size, stamp.st_mtime_ns] for name, stamp in stamps.items()},
        "bits": bits,
        "core_bits": core_bits,
        "dtype": _plain(kept),
    }


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
