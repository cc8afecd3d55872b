"""Token ids on disk: one stream of documents, cut into files of bounded size.

    train-00000.bin   train-00001.bin        little-endian ids, two or four bytes each
    |d0 |d1    |d2  ··|·· d2 |d3   |         documents run across files
    train-documents.npy                      where each document starts in the stream
    train-names.json                         the names of the first documents

Files are written plainly and read as memory maps: writing through a map kills the process on a full disk.
"""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]

MAX_NAMES = 65_536
SHARD_TOKENS = 64 * 2**20


def choose_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the narrowest dtype on disk that holds every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Appends documents to the shards of one split; as a context it closes its file whatever happens."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int = SHARD_TOKENS) -> None:
        """Start an empty split in an existing folder."""
        self._folder = folder
        self._split = split
        self._dtype = dtype
        self._shard_tokens = shard_tokens
        self._sizes: list[int] = []
        self._starts = array("Q")
        self._names: list[str] = []
        self._num_tokens = 0
        self._num_characters = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, name: str, ids: Sequence[int] | Ids, num_characters: int) -> None:
        """Write one document, its end token included."""
        self._starts.append(self._num_tokens)
        if len(self._names) < MAX_NAMES:
            self._names.append(name)
        self._num_characters += num_characters
        self._num_tokens += len(ids)
        rest = np.asarray(ids, dtype=self._dtype)
        while len(rest):
            file = self._file_with_room()
            piece = rest[: self._shard_tokens - self._sizes[-1]]
            file.write(piece.tobytes())
            self._sizes[-1] += len(piece)
            rest = rest[len(piece) :]

    def finish(self) -> dict[str, Any]:
        """Write the document starts and names, and return what the manifest says about this split."""
        np.save(self._folder / f"{self._split}-documents.npy", np.array(self._starts, dtype=np.uint64))
        names_file = self._folder / f"{self._split}-names.json"
        names_file.write_text(json.dumps(self._names, ensure_ascii=False), encoding="utf-8", errors="replace")
        return {
            "documents": len(self._starts),
            "tokens": self._num_tokens,
            "characters": self._num_characters,
            "shards": [
                {"file": _shard_name(self._split, number), "tokens": size} for number, size in enumerate(self._sizes)
            ],
        }

    def _file_with_room(self) -> BinaryIO:
        if self._file is None or self._sizes[-1] == self._shard_tokens:
            if self._file is not None:
                self._file.close()
            self._file = (self._folder / _shard_name(self._split, len(self._sizes))).open("wb")
            self._sizes.append(0)
        return self._file


class TokenSplit:
    """The tokens and documents of one split, read from memory maps.

    Attributes:
        num_tokens: length of the stream.
        document_starts: position of each document's first token, strictly increasing, from 0.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any], entry: dict[str, Any]) -> None:
        """Open the files that a manifest's entry names.

        Raises:
            OSError, ValueError: a file is missing, or its size is not what the entry says.
        """
        self._shards: list[Ids] = []
        for shard in entry["shards"]:
            path = folder / shard["file"]
            found, expected = path.stat().st_size, shard["tokens"] * dtype.itemsize
            if found != expected:
                raise ValueError(f"'{path}' has {found} bytes in place of {expected}")
            self._shards.append(np.memmap(path, dtype=dtype, mode="r"))
        self._shard_starts = np.cumsum([0] + [shard["tokens"] for shard in entry["shards"]])
        self.num_tokens = int(self._shard_starts[-1])
        self.document_starts = np.load(folder / f"{split}-documents.npy").astype(np.int64)
        self._names: list[str] = json.loads((folder / f"{split}-names.json").read_text(encoding="utf-8"))
        if self.num_tokens != entry["tokens"] or len(self.document_starts) != entry["documents"]:
            raise ValueError(f"the counts of '{folder}' do not fit its manifest")

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the ids of positions `start` to `stop` of the stream, across shards, as a copy."""
        ids = np.empty(max(min(stop, self.num_tokens) - start, 0), dtype=np.int64)
        filled = 0
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        while filled < len(ids):
            offset = start + filled - int(self._shard_starts[shard])
            piece = self._shards[shard][offset : offset + len(ids) - filled]
            ids[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard += 1
        return ids

    def document_name(self, index: int) -> str:
        """Return the name of a document, or its number where the name was not kept."""
        return self._names[index] if index < len(self._names) else f"document {index}"


def _shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.bin"
