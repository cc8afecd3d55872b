"""Linear maps whose weights may be kept wider than the activations."""

from torch import Tensor, nn

from moesaic.ops.linear import linear


class Linear(nn.Linear):
    """A linear map computed in the dtype of its input; float32 master weights are cast on use."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
