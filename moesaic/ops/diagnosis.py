"""What computes here, as `moesaic doctor` tells it: plain data, ready to be printed."""

from typing import Any

import torch

from moesaic.ops.backend import explain_backends
from moesaic.ops.cpu.library import InstructionSet, choose_instruction_set, list_instruction_sets

_DTYPES = (torch.float32, torch.bfloat16)


def examine_operations() -> dict[str, Any]:
    """Return the instruction sets and, for each operation and usual kind of tensor, who computes it and who does not.

    Raises:
        ConfigError, UnsupportedError: MOESAIC_ISA names what cannot be.
    """
    chosen = choose_instruction_set()
    sets = list_instruction_sets()
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "kernels_built": bool(sets),
        "instruction_set": chosen.name if isinstance(chosen, InstructionSet) else None,
        "instruction_set_refusal": None if isinstance(chosen, InstructionSet) else chosen,
        "instruction_sets": [{"name": each.name, "refusal": each.refusal} for each in sets],
        "operations": _examine_backends(),
    }


def _examine_backends() -> list[dict[str, Any]]:
    rows = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for dtype in _DTYPES:
            kind = {"device": device, "dtype": str(dtype).removeprefix("torch.")}
            for operation, refusals in explain_backends(torch.empty(1, 1, dtype=dtype, device=device)).items():
                runnable = [name for name, refusal in refusals.items() if refusal is None]
                rows.append({"operation": operation, **kind, "chosen": runnable[0], "refusals": refusals})
    return rows
