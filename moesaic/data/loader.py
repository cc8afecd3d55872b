"""Batches for training and evaluation, and a position that restores them.

Sample n is the same sequence in every run over the same data with the same settings, whatever the batch size
and whatever was loaded before; the loader's whole state is the number of the next sample.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from moesaic.config.data import DataConfig
from moesaic.data.mix import Mixture, epoch_order
from moesaic.data.pack import PackedSplit, describe_documents, positions_in_documents
from moesaic.data.prepare import PreparedData
from moesaic.errors import DataError

Place = tuple[int, int]  # number of a part, number of a sequence in it


@dataclass(frozen=True)
class Batch:
    """Sequences to compute on.

    Attributes:
        ids_BS: int64 token ids.
        labels_BS: int64, the token after each; -100: not a label.
        document_ids_BS: int64 number of each token's document, from 0 in each sequence; None: attention is
            not kept within documents.
        positions_BS: int64 position of each token in its document; None as above: 0, 1, ... in each sequence.
        first_sample: number of the first sequence; the others follow.
        origins: for each part with sequences here, its source and the names of the documents.
    """

    ids_BS: torch.Tensor
    labels_BS: torch.Tensor
    document_ids_BS: torch.Tensor | None
    positions_BS: torch.Tensor | None
    first_sample: int
    origins: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        """Return where the batch comes from: 'samples 320..327 of python-stdlib: argparse.py, ast.py'."""
        last = self.first_sample + len(self.ids_BS) - 1
        return f"samples {self.first_sample}..{last} of " + "; ".join(f"{s}: {names}" for s, names in self.origins)

    def rows(self, rows: slice) -> "Batch":
        """Return some of the sequences; the tensors are views, and `origins` still tells of all."""
        return replace(
            self,
            ids_BS=self.ids_BS[rows],
            labels_BS=self.labels_BS[rows],
            document_ids_BS=None if self.document_ids_BS is None else self.document_ids_BS[rows],
            positions_BS=None if self.positions_BS is None else self.positions_BS[rows],
            first_sample=self.first_sample + rows.indices(len(self.ids_BS))[0],
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the same on a device."""
        return replace(
            self,
            ids_BS=self.ids_BS.to(device),
            labels_BS=self.labels_BS.to(device),
            document_ids_BS=None if self.document_ids_BS is None else self.document_ids_BS.to(device),
            positions_BS=None if self.positions_BS is None else self.positions_BS.to(device),
        )


class Loader:
    """Training batches in a seeded order, and evaluation batches in a fixed one.

    Attributes:
        next_sample: number of the sample that the next batch starts with.
    """

    def __init__(self, prepared: PreparedData, config: DataConfig, batch_size: int) -> None:
        """Start at the first sample; `batch_size` is in sequences."""
        self._prepared = prepared
        self._config = config
        self._batch_size = batch_size
        self._packed = [self._pack(part.train) for part in prepared.parts]
        self._mixture = Mixture([part.weight for part in prepared.parts], config.seed)
        self.next_sample = 0

    def next_batch(self, num_sequences: int | None = None) -> Batch:
        """Return the next sequences, by default a batch of them, and move on."""
        count = self._batch_size if num_sequences is None else num_sequences
        batch = self.batch_at(self.next_sample, count)
        self.next_sample += count
        return batch

    def batch_at(self, first_sample: int, num_sequences: int) -> Batch:
        """Return given samples and stay: each process of a run may so take its own rows of a step."""
        places = [self._place(sample) for sample in range(first_sample, first_sample + num_sequences)]
        sources = [part.source for part in self._prepared.parts]
        return _assemble(self._packed, sources, places, first_sample, self._config.respect_documents)

    def state_dict(self) -> dict[str, Any]:
        """Return the position and what it counts in, as JSON-able data of a few bytes."""
        return {
            "next_sample": self.next_sample,
            "data_digest": self._prepared.digest,
            "sequence_length": self._config.sequence_length,
            "seed": self._config.seed,
            "weights": [part.weight for part in self._prepared.parts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position.

        Raises:
            DataError: the data or a setting that decides the order is not what it was; the text names it.
        """
        own = self.state_dict()
        missing = own.keys() - state.keys()
        if missing:
            raise DataError(f"the saved position of the data lacks '{min(missing)}'", "resume from another checkpoint")
        if state["data_digest"] != own["data_digest"]:
            raise DataError(
                "the data or the tokenizer changed since the checkpoint was written: "
                f"digest {state['data_digest']} then, {own['data_digest']} now",
                "restore the files, the tokenizer and the Python version, or start a new run",
            )
        for name in ("sequence_length", "seed", "weights"):
            if state[name] != own[name]:
                raise DataError(
                    f"data {name} was {state[name]} when the checkpoint was written, it is {own[name]} now: "
                    "its position would be another one",
                    "set it back, or start a new run",
                )
        self.next_sample = int(state["next_sample"])

    def evaluation_batches(self, batch_size: int | None = None, max_batches: int | None = None) -> Iterator[Batch]:
        """Yield the held-out sequences in a fixed order, each once; none where nothing is held out.

        The parts are interleaved in proportion to their lengths, so the first batches stand for the whole.

        Args:
            batch_size: sequences of a batch; None: as in training. The last batch may be smaller.
            max_batches: stop after so many; None: all.
        """
        parts = [part for part in self._prepared.parts if part.held_out is not None]
        packed = [self._pack(part.held_out) for part in parts if part.held_out is not None]
        if not packed:
            return
        mixture = Mixture([Fraction(split.num_sequences) for split in packed])
        size, total = batch_size or self._batch_size, sum(split.num_sequences for split in packed)
        for number, first in enumerate(range(0, total, size)):
            if number == max_batches:
                return
            places = [mixture.place(sample) for sample in range(first, min(first + size, total))]
            sources = [part.source for part in parts]
            yield _assemble(packed, sources, places, first, self._config.respect_documents)

    def _place(self, sample: int) -> Place:
        part, index = self._mixture.place(sample)
        return part, epoch_order(index, self._packed[part].num_sequences, self._config.seed, part)

    def _pack(self, split: Any) -> PackedSplit:
        return PackedSplit(split, self._config.sequence_length, self._config.respect_documents)


def _assemble(
    packed: Sequence[PackedSplit],
    sources: Sequence[str],
    places: Sequence[Place],
    first_sample: int,
    respect_documents: bool,
) -> Batch:
    rows = [packed[part].sequence(index) for part, index in places]
    ids, labels, documents = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    positions = np.stack([positions_in_documents(row[2]) for row in rows]) if respect_documents else None
    origins = []
    for part in sorted({part for part, _ in places}):
        indices = [index for owner, index in places if owner == part]
        origins.append((sources[part], describe_documents(packed[part], indices)))
    return Batch(
        ids_BS=ids,
        labels_BS=labels,
        document_ids_BS=documents if respect_documents else None,
        positions_BS=None if positions is None else torch.from_numpy(positions),
        first_sample=first_sample,
        origins=tuple(origins),
    )
