"""How fast pages come from the disk, measured by reading some."""

import random
import time
from collections import deque
from collections.abc import Sequence

from moesaic.memory.disk import Disk, Reading
from moesaic.memory.page import Page, PageLayout, stored_bytes, without_checksums
from moesaic.memory.pool import Pool

# As many as a pager has on their way.
_NUM_READINGS = 4


def measure_disk_rate(pages: Sequence[Page], layout: PageLayout, disk: Disk, seconds: float = 0.3) -> float:
    """Return bytes of files a second, of pages in random order, each read once at most, as if not for the first time.

    Args:
        pages: of a model, at least one.
        layout: of their records.
        disk: to read them; not in use. One that is not cached reads past the page cache, where the file system lets.
        seconds: after which no more reads begin.

    Raises:
        CheckpointError: a file cannot be read.
    """
    # Slots as a pager has them: pages that are aligned on disk go straight there.
    pool = Pool(layout, _NUM_READINGS)
    # Not the same ones each time: somebody below us, such as the host of a virtual machine, may keep what was read.
    order = random.SystemRandom().sample(range(len(pages)), len(pages))
    begin = time.perf_counter()
    readings: deque[Reading] = deque()
    num_bytes = 0
    for turn, index in enumerate(order):
        if len(readings) == _NUM_READINGS:
            readings.popleft().wait()
            if time.perf_counter() - begin >= seconds:
                break
        readings.append(disk.read(without_checksums(pages[index]), pool.record(turn % _NUM_READINGS)))
        num_bytes += stored_bytes(pages[index])
    for reading in readings:
        reading.wait()
    return num_bytes / (time.perf_counter() - begin)
