"""Which parameters are decayed."""

from torch import Tensor, nn


def group_parameters(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split parameters in two groups: matrices, embeddings and experts are decayed, norms and biases are not."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim >= 2 else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
