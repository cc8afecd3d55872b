"""What a checkpoint says of itself in state.json: its format, and the files that it was written with."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moesaic.checkpoint.checksum import Checksum
from moesaic.checkpoint.folder import STATE, read_json
from moesaic.checkpoint.shard import Digest
from moesaic.errors import CheckpointError
from moesaic.units import format_count

FORMAT = 2
# Stays in the cache of the processor between reading and summing.
_CHUNK_BYTES = 2**19
_WAY_OUT = "resume from an earlier one with --resume PATH"


def describe_files(digests: Mapping[str, Digest]) -> dict[str, Any]:
    """Return what state.json says of files, by name."""
    files = {
        name: {"bytes": digest.num_bytes, "checksum": f"{digest.checksum:08x}"}
        for name, digest in sorted(digests.items())
    }
    return {"format": FORMAT, "files": files}


def read_state(path: Path) -> Mapping[str, Any]:
    """Return what state.json of a checkpoint holds.

    Raises:
        CheckpointError: it is missing or damaged, or of a version that this one does not read.
    """
    try:
        state = read_json(path / STATE)
    except CheckpointError as failure:
        raise CheckpointError(f"checkpoint '{path}' is damaged: {failure.text}", _WAY_OUT) from None
    if state.get("format") != FORMAT or not isinstance(state.get("files"), dict):
        raise CheckpointError(
            f"checkpoint '{path}' has format {state.get('format')}, this version reads {FORMAT}",
            "resume with the version of moesaic that wrote it, or begin a new run from its exported model",
        )
    return state


def list_files(path: Path, folder: str | None = None) -> dict[str, Digest]:
    """Return the files of a checkpoint, or of a folder of it, by name; their names and lengths are checked.

    Raises:
        CheckpointError: as `read_state`; or a file is missing, cut, or none of those that were written.
    """
    prefix = "" if folder is None else f"{folder}/"
    try:
        listed = {
            name: Digest(int(facts["bytes"]), int(facts["checksum"], 16))
            for name, facts in read_state(path)["files"].items()
            if name.startswith(prefix)
        }
    except (KeyError, TypeError, ValueError) as failure:
        raise CheckpointError(
            f"checkpoint '{path}' is damaged: {STATE} does not tell its files ({type(failure).__name__}: {failure})",
            _WAY_OUT,
        ) from None
    found = {str(file.relative_to(path)): file.stat().st_size for file in path.glob("*/*.safetensors")}
    for name, digest in listed.items():
        if name not in found:
            raise CheckpointError(f"checkpoint '{path}' lacks '{name}', one of its {len(listed)} files", _WAY_OUT)
        if found[name] != digest.num_bytes:
            raise damage_error(path, f"'{name}' has {found[name]} bytes, {digest.num_bytes} were written")
    extra = sorted(name for name in found if name.startswith(prefix) and name not in listed)
    if extra:
        raise CheckpointError(
            f"checkpoint '{path}' holds '{extra[0]}', which is none of the {format_count(len(listed))} files that it "
            "was written with",
            f"resume without that file, or {_WAY_OUT}",
        )
    return listed


def check_content(path: Path, files: Mapping[str, Digest], names: Sequence[str]) -> None:
    """Compare the checksums of files of a checkpoint.

    Args:
        path: the checkpoint.
        files: of `list_files`.
        names: which to read, whole.

    Raises:
        CheckpointError: one is damaged, or cannot be read.
    """
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    for name in names:
        checksum = Checksum()
        try:
            with (path / name).open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)  # reads far ahead
                while count := file.readinto(buffer):
                    checksum.add(buffer[:count])
        except OSError as failure:
            raise damage_error(path, f"'{name}' cannot be read: {failure}") from None
        if checksum.value != files[name].checksum:
            raise damage_error(
                path, f"'{name}' has checksum {checksum.value:08x}, {files[name].checksum:08x} was written"
            )


def damage_error(path: Path, found: str) -> CheckpointError:
    """Say that a checkpoint is not as it was written."""
    return CheckpointError(f"checkpoint '{path}' is damaged: {found}", _WAY_OUT)
