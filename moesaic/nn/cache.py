"""Keys and values of the tokens already seen."""

import torch
from torch import Tensor
from torch.nn import functional


class KVCache:
    """One contiguous cache, every sequence's slots starting at 0.

    Sequences may have different lengths: a slot at or beyond a sequence's length holds nothing that any query
    of it sees. Memory: 2 L B G Z C elements.
    """

    def __init__(
        self, num_layers: int, batch: int, kv_heads: int, num_slots: int, channels: int, dtype: torch.dtype
    ) -> None:
        shape = (num_layers, batch, kv_heads, num_slots, channels)
        self.keys = torch.zeros(shape, dtype=dtype)
        self.values = torch.zeros(shape, dtype=dtype)
        self.lengths_B = torch.zeros(batch, dtype=torch.int64)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all keys and values, written or not."""
        return self.keys.nbytes + self.values.nbytes

    def grow(self, num_slots: int) -> None:
        """Make room for this many positions a sequence; what is held stays. Both sizes are in memory for a while."""
        added = num_slots - self.keys.shape[3]
        self.keys = functional.pad(self.keys, (0, 0, 0, added))
        self.values = functional.pad(self.values, (0, 0, 0, added))

    def write(self, layer: int, positions_BS: Tensor, key_BSGC: Tensor, value_BSGC: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values at their positions; return all up to the last one, each [B, G, Z, C]."""
        last = int(positions_BS.max()) + 1
        if len(positions_BS) == 1 and positions_BS.shape[1] == 1:  # one place needs no index
            self.keys[layer, 0, :, last - 1] = key_BSGC[0, 0]
            self.values[layer, 0, :, last - 1] = value_BSGC[0, 0]
        else:
            rows_B1 = torch.arange(len(positions_BS), device=positions_BS.device).unsqueeze(1)
            self.keys[layer][rows_B1, :, positions_BS] = key_BSGC
            self.values[layer][rows_B1, :, positions_BS] = value_BSGC
        return self.keys[layer, :, :, :last], self.values[layer, :, :, :last]
