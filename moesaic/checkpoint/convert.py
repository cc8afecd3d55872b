"""Writing a checkpoint in another layout."""

from pathlib import Path

from moesaic.checkpoint.export import export_tensors
from moesaic.checkpoint.folder import find_model, find_tokenizer, is_checkpoint, load_config
from moesaic.checkpoint.load import choose_dtype, read_each
from moesaic.checkpoint.manifest import check_content, list_files
from moesaic.checkpoint.page_index import PageIndex
from moesaic.checkpoint.repack import Progress, repack_model
from moesaic.checkpoint.store import MODEL
from moesaic.checkpoint.stored import open_model
from moesaic.memory.disk import Disk


def convert_to_hf(source: str, target: Path, dtype: str | None) -> bool:
    """Write a Hugging Face folder `target` from a model folder, a run folder, a hub id or a checkpoint of a run.

    Returns:
        Whether transformers can load it.

    Raises:
        CheckpointError: the source cannot be read or the target not be written.
        ConfigError: unknown dtype, or a value in the configuration that is not accepted.
        UnsupportedError: a family or feature that is not supported, or experts of a few bits.
    """
    asked = choose_dtype(dtype)
    folder = find_model(source)
    _check_content(folder)
    stored = open_model(folder)
    stored.check_exact()
    kept = asked or stored.dtype
    disk = Disk()
    try:
        parameters = read_each(stored, kept, disk)
        return export_tensors(stored.model.config, parameters, kept, target, find_tokenizer(folder))
    finally:
        disk.close()


def convert_to_moesaic(
    source: str,
    target: Path,
    bits: int | None,
    dtype: str | None,
    on_progress: Progress,
    core_bits: int | None = None,
) -> PageIndex:
    """Write a repacked model `target` from the same; arguments and errors are those of `repack_model`."""
    choose_dtype(dtype)
    folder = find_model(source)
    _check_content(folder)
    return repack_model(folder, target, bits, dtype, on_progress, core_bits)


def _check_content(folder: Path) -> None:
    """Compare the checksums of a checkpoint's weights; no other folder has any beside its records."""
    if is_checkpoint(folder):
        load_config(folder)  # what is no model is told first
        files = list_files(folder, MODEL)
        check_content(folder, files, list(files))
