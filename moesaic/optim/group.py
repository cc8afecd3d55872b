"""Which parameters are decayed."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def group_parameters(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Group parameters: matrices, embeddings and experts are decayed, norms and biases are not.

    Those that are spread over other ranks than others are groups of their own: no operation mixes them.
    """
    groups: dict[tuple[bool, object], list[Tensor]] = {}
    for parameter in model.parameters():
        ranks = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault((parameter.ndim >= 2, ranks), []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay if is_decayed else 0.0}
        for (is_decayed, _), params in groups.items()
    ]
