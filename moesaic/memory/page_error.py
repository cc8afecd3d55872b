"""The failure of a page, told to those whose tokens need it."""

from moesaic.errors import CheckpointError


class PageError(CheckpointError):
    """A page that cannot be read.

    Attributes:
        layer, expert: which.
        tokens: of the pass that need it.
    """

    def __init__(self, layer: int, expert: int, failure: CheckpointError) -> None:
        super().__init__(f"expert {expert} of layer {layer}: {failure.text}", failure.hint)
        self.layer, self.expert = layer, expert
        self.tokens: list[int] = []
