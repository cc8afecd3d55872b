"""Whose sequences a process attends in: its own, or also those of others with whom it shares the heads."""

from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """The sequences that attention computes here."""

    def meet(self, positions_BS: Tensor, document_ids_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Begin a pass: take what tells of this process's sequences, and return the same of all that are computed."""
        ...


class OwnRows:
    """No others."""

    def meet(self, positions_BS: Tensor, document_ids_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return them."""
        return positions_BS, document_ids_BS


OWN = OwnRows()
