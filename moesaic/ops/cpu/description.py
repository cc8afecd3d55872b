"""A mixture as the compiled kernels are told of it: sizes, and pointers at the tensors."""

import ctypes

import torch
from torch import Tensor

from moesaic.ops.cpu.library import InstructionSet, choose_instruction_set, load_library
from moesaic.ops.tensor import are_items_whole

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
_ALIGNMENT = 64


class Mixture(ctypes.Structure):
    """`MoesaicMixture` of csrc/moesaic.h."""

    _fields_ = [
        *[(name, ctypes.c_int32) for name in ("isa", "dtype", "num_threads")],
        *[(name, ctypes.c_int64) for name in ("num_tokens", "num_rows", "width", "hidden_width", "num_experts")],
        *[(name, ctypes.c_void_p) for name in ("counts", "token_ids", "inverse", "starts", "expert_ids", "weights")],
        *[(name, ctypes.c_void_p) for name in ("hidden", "gate_up", "down", "gate_up_rows", "scratch", "places")],
        *[(name, ctypes.c_int64) for name in ("num_slots", "gate_up_stride", "down_stride")],
        ("rows", ctypes.c_void_p),
    ]


class Described:
    """Tensors as the kernels read them, alive as long as this.

    Attributes:
        mixture: what points at them.
    """

    def __init__(
        self, hidden: Tensor, weights: Tensor | None, gate_up: Tensor, down: Tensor, routing: list[Tensor]
    ) -> None:
        chosen = choose_instruction_set()
        assert isinstance(chosen, InstructionSet), "the caller asked explain_refusal"
        hidden = hidden.contiguous()
        gate_up, gate_up_stride = as_slots(gate_up)
        down, down_stride = as_slots(down)
        weights = None if weights is None else weights.contiguous()
        routing = [each.contiguous() for each in routing]
        self._alive = hidden, gate_up, down, weights, routing
        pointers = {"weights": None if weights is None else address_of(weights)}
        has_ids = len(routing) == 1 and routing[0].ndim == 2
        names = ("expert_ids",) if has_ids else ("counts", "token_ids", "inverse", "starts")
        pointers |= {name: address_of(each) for name, each in zip(names, routing, strict=False)}
        self.mixture = Mixture(
            chosen.number,
            DTYPES[hidden.dtype],
            torch.get_num_threads(),
            hidden.shape[0],
            count_rows(hidden, routing),
            hidden.shape[1],
            down.shape[2],
            gate_up.shape[0],
            hidden=hidden.data_ptr(),
            gate_up=address_of(gate_up),
            down=address_of(down),
            gate_up_stride=gate_up_stride,
            down_stride=down_stride,
            **pointers,
        )


class DescribedProduct:
    """Rows and a matrix as the kernels read them, a grouped product of one expert, alive as long as this.

    Attributes:
        mixture: what points at them; it has no gate_up.
    """

    def __init__(self, rows_NK: Tensor, weight: Tensor, width: int) -> None:
        chosen = choose_instruction_set()
        assert isinstance(chosen, InstructionSet), "the caller asked explain_refusal"
        rows_NK = rows_NK.contiguous()
        num_rows, depth = rows_NK.shape
        counts = ctypes.c_int64(num_rows)
        self._alive = rows_NK, weight, counts
        self.mixture = Mixture(
            chosen.number,
            DTYPES[rows_NK.dtype],
            torch.get_num_threads(),
            num_rows,
            num_rows,
            width,
            depth,
            1,
            counts=ctypes.addressof(counts),
            hidden=address_of(rows_NK),
            down=address_of(weight),
        )


def as_slots(tensor: Tensor) -> tuple[Tensor, int]:
    """Return what holds an item for each expert, items in one piece each, and the bytes from one to the next.

    The bytes are 0 where items follow one another. Only items that are torn apart are copied.
    """
    if not tensor.is_contiguous() and are_items_whole(tensor):
        return tensor, tensor.stride(0) * tensor.element_size()
    return tensor.contiguous(), 0


def address_of(tensor: Tensor) -> int:
    """Return where a tensor lies: an empty one, which lies nowhere, anywhere, for a null means that there is none."""
    return tensor.data_ptr() or _ALIGNMENT


def count_rows(hidden: Tensor, routing: list[Tensor]) -> int:
    """Return N of a routing as the operators take it."""
    if len(routing) == 1:
        return routing[0].numel() if routing[0].ndim == 2 else len(hidden)
    return len(routing[1])


def open_library() -> ctypes.CDLL:
    """Return the library, where explain_refusal has found one."""
    library = load_library()
    assert library is not None, "the caller asked explain_refusal"
    return library
