"""Choice of experts and grouping of rows in the compiled library, as torch operators."""

import torch
from torch import Tensor

from moesaic.ops.cpu.library import check_status, choose_instruction_set, load_library


def explain_refusal(tensor: Tensor) -> str | None:
    """Return why the compiled library cannot take such a tensor; None where it can."""
    if tensor.device.type != "cpu":
        return f"the compiled kernels run on cpu, the tensors are on {tensor.device.type}"
    chosen = choose_instruction_set()
    return chosen if isinstance(chosen, str) else None


def top_k(scores_RE: Tensor, k: int) -> Tensor:
    """As `ops/route.py`; k lies within the columns."""
    return torch.ops.moesaic.top_k.default(scores_RE.detach().float(), k)


def group_by_expert(
    token_ids_N: Tensor, expert_ids_N: Tensor, num_tokens: int, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the parts of a `Permutation`: token ids and inverse [N], starts [T], counts [E].

    Raises:
        UnsupportedError: an id is out of range, or the tokens do not ascend.
    """
    return torch.ops.moesaic.group_by_expert.default(token_ids_N, expert_ids_N, num_tokens, num_experts)


def _top_k(scores: Tensor, k: int) -> Tensor:
    scores = scores.contiguous()
    rows, columns = scores.shape
    chosen = scores.new_empty((rows, k), dtype=torch.int64)
    library = load_library()
    assert library is not None, "the caller asked explain_refusal"
    threads = torch.get_num_threads()
    status = library.moesaic_top_k(scores.data_ptr(), rows, columns, k, threads, chosen.data_ptr())
    check_status(status, "choosing experts")
    return chosen


def _group_by_expert(
    token_ids: Tensor, expert_ids: Tensor, num_tokens: int, num_experts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    token_ids, expert_ids = token_ids.contiguous(), expert_ids.contiguous()
    num_pairs = len(token_ids)
    results = [torch.empty(size, dtype=torch.int64) for size in (num_pairs, num_pairs, num_tokens, num_experts)]
    library = load_library()
    assert library is not None, "the caller asked explain_refusal"
    pointers = (result.data_ptr() for result in results)
    sizes = num_pairs, num_tokens, num_experts
    status = library.moesaic_group_by_expert(token_ids.data_ptr(), expert_ids.data_ptr(), *sizes, *pointers)
    check_status(status, "grouping rows by expert")
    return results[0], results[1], results[2], results[3]


def _fake_top_k(scores, k):  # type: ignore[no-untyped-def]
    return scores.new_empty((scores.shape[0], k), dtype=torch.int64)


def _fake_group_by_expert(token_ids, expert_ids, num_tokens, num_experts):  # type: ignore[no-untyped-def]
    num_pairs = token_ids.shape[0]
    return tuple(token_ids.new_empty(size) for size in (num_pairs, num_pairs, num_tokens, num_experts))


_LIBRARY = torch.library.Library("moesaic", "FRAGMENT")
_LIBRARY.define("top_k(Tensor scores, int k) -> Tensor")
_LIBRARY.define(
    "group_by_expert(Tensor token_ids, Tensor expert_ids, int num_tokens, int num_experts) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("top_k", _top_k, "CPU")
_LIBRARY.impl("group_by_expert", _group_by_expert, "CPU")
torch.library.register_fake("moesaic::top_k", _fake_top_k, lib=_LIBRARY)
torch.library.register_fake("moesaic::group_by_expert", _fake_group_by_expert, lib=_LIBRARY)
