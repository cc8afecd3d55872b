"""What repacking would bring, measured: how fast experts come from where they are, and as aligned records.

In place, an expert is several pieces that begin anywhere: a direct read takes more than the piece, into a buffer, from
which the piece is copied. A record is one piece, and goes where it belongs. To tell how fast that would be none need be
written: a run of the same file that begins and ends where a record would costs the same.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from moesaic.checkpoint.folder import find_model
from moesaic.checkpoint.lay_out import lay_out_pages
from moesaic.checkpoint.stored import open_model
from moesaic.memory.disk import Disk
from moesaic.memory.page import ALIGNMENT, Extent, Page, Piece, stored_bytes
from moesaic.memory.probe import measure_disk_rate

# Experts of fewer bytes stay in the page cache.
_LEAST_BYTES = 2**30
_TURNS = 5
_TURN_SECONDS = 0.15
# Less is lost in what other programs do meanwhile.
_LEAST_GAIN = 1.1


@dataclass(frozen=True)
class ReadRates:
    """Bytes of experts a second, past the page cache, medians of a few turns.

    Attributes:
        in_place: from where they are.
        repacked: as aligned records.
    """

    in_place: float
    repacked: float

    @property
    def is_worth(self) -> bool:
        """Tell whether records are faster by more than chance."""
        return self.repacked > _LEAST_GAIN * self.in_place


def measure_read_rates(name: str | Path) -> ReadRates | None:
    """Read some experts in both ways, in turns; takes about two seconds.

    Args:
        name: as for `load_model`.

    Returns:
        None for a model that is repacked, or whose experts take less than 1 GiB.

    Raises:
        CheckpointError, UnsupportedError, ConfigError: as `open_model`; or a file cannot be read.
    """
    stored = open_model(find_model(name))
    layout, by_layer = lay_out_pages(stored, stored.dtype)
    pages = [page for each in by_layer.values() for page in each]
    if stored.repacked is not None or len(pages) * layout.num_bytes < _LEAST_BYTES:
        return None
    ways = {"in_place": pages, "repacked": [_as_record(page) for page in pages]}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    disk = Disk()
    try:
        for turn in range(_TURNS):
            for way in sorted(ways, reverse=turn % 2 == 1):
                rates[way].append(measure_disk_rate(ways[way], layout, disk, _TURN_SECONDS))
    finally:
        disk.close()
    return ReadRates(**{way: median(each) for way, each in rates.items()})


def _as_record(page: Page) -> Page:
    """Return an aligned run near a page, about as long."""
    first = page[0].extent
    room = first.file.stat().st_size // ALIGNMENT * ALIGNMENT
    num_bytes = min(stored_bytes(page) // ALIGNMENT * ALIGNMENT, room)
    offset = min(first.offset // ALIGNMENT * ALIGNMENT, room - num_bytes)
    return (Piece(Extent(first.file, offset, num_bytes), torch.uint8, torch.uint8, 0),)
