"""The gated MLP of dense layers and shared experts."""

from torch import Tensor, nn
from torch.nn import functional

from moesaic.nn.linear import Linear


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer, 2020, "GLU Variants Improve Transformer", SwiGLU)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.gate = Linear(width, hidden_width, bias=False)
        self.up = Linear(width, hidden_width, bias=False)
        self.down = Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))
