"""Where pages come from, and the slots that they go to: what a `Loader` asks of either.

| source | slots | record |
| --- | --- | --- |
| `Disk` | `Pool` | bytes of host memory |
| `HostTier`, fed by a disk | `DevicePool` | bytes of a device |
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor

from moesaic.memory.disk import Reading
from moesaic.memory.page import Page, PageLayout

Record_in = TypeVar("Record_in", contravariant=True)
Record_out = TypeVar("Record_out", covariant=True)


class Source(Protocol[Record_in]):
    """Brings pages.

    Attributes:
        bytes_read: of files, which the pages brought so far take there.
        busy_seconds: during which something was on its way.
    """

    bytes_read: int
    busy_seconds: float

    def read(
        self, page: Page, record: Record_in, on_end: Callable[[], None] | None = None, urgent: bool = True
    ) -> Reading:
        """Begin to fill a record; as `Disk.read`."""
        ...


class Slots(Protocol[Record_out]):
    """S equal slots.

    Attributes:
        layout: of a slot.
        num_slots: S.
        fields: each field of the layout as a tensor [S, ...] over all slots.
    """

    layout: PageLayout
    num_slots: int
    fields: dict[str, Tensor]

    def record(self, slot: int) -> Record_out:
        """Return the bytes of a slot."""
        ...
