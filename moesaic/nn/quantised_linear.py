"""Linear maps with weights of 8 bits, for generating alone."""

import torch
from torch import Tensor, nn

from moesaic.nn.linear import Linear
from moesaic.ops.quant import QuantisedMatrix, quantised_matrix_shapes
from moesaic.ops.quantised_linear import quantised_linear

# A gate decides for a whole token by one number, as a router does by a few: it stays as it is.
_GATE = "shared_gate"


class QuantisedLinear(nn.Module):
    """A linear map computed from int8 `blocks` and float32 `scales`, in the dtype of its input."""

    blocks: Tensor
    scales: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        blocks, scales = quantised_matrix_shapes(out_features, in_features)
        # No parameters: integers have no gradients.
        self.register_buffer("blocks", torch.empty(blocks, dtype=torch.int8))
        self.register_buffer("scales", torch.empty(scales, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        matrix = QuantisedMatrix(self.blocks, self.scales, self.out_features, self.in_features)
        return quantised_linear(x, matrix, None if self.bias is None else self.bias.to(x.dtype))


def list_linear_maps(model: nn.Module) -> dict[str, Linear]:
    """Return, by name, the maps of a model that may be of 8 bits: all but routers and gates."""
    maps = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    return {name: module for name, module in maps.items() if not name.endswith(_GATE)}


def apply_quantised_linear(model: nn.Module) -> nn.Module:
    """Put maps of 8 bits, whose values are not set yet, in the place of `list_linear_maps`; return the model."""
    for name, module in list_linear_maps(model).items():
        with torch.device(module.weight.device):
            quantised = QuantisedLinear(module.in_features, module.out_features, bias=module.bias is not None)
        model.set_submodule(name, quantised)
    return model
