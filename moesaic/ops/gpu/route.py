"""Who goes where: the choice of experts, and the order of rows, without a word to the host.

`top_k` makes the key of `ops/route.py`, one distinct integer per score, and takes the largest k times.

`group_by_expert` is a counting sort. Pairs are cut into blocks; the table of counts has a row per expert and a
column per block, and its running sum says where the pairs of one expert in one block go:

    pairs    expert  3 1 | 0 3 | 1        counts     e0  0 1 0        starts     e0  0 0 1
                                                     e1  1 0 1                   e1  1 2 2
    place    3 1 | 0 4 | 2                           e3  1 1 0                   e3  3 4 5

A pair's place is its start plus the pairs of its own expert before it in the block: stable, and the same each time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moesaic.errors import ConfigError
from moesaic.ops.gpu.launch import launch, num_blocks
from moesaic.ops.permutation import Permutation

# Pairs that a program ranks among each other, experts it counts at once, scores (rows times columns) it holds: each
# a few tens of registers a thread. Not yet compared with others on a device.
_BLOCK_PAIRS = 128
_BLOCK_EXPERTS = 32
_BLOCK_SCORES = 2048


def top_k(scores_RE: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest scores of each row, best first, ties to the lower index.

    Args:
        scores_RE: [R, E] of float32, float16 or bfloat16, E a thousand or so; infinities are fine, NaN counts as
            largest.
        k: 1..E.

    Returns:
        [R, k] int64.

    Raises:
        ConfigError: k is outside the columns.
    """
    num_rows, num_columns = scores_RE.shape
    if not 1 <= k <= num_columns:
        raise ConfigError(f"cannot choose {k} of {num_columns} columns", f"k must lie within 1..{num_columns}")
    scores_RE = scores_RE.detach().contiguous()
    chosen_RK = torch.empty(num_rows, k, dtype=torch.int64, device=scores_RE.device)
    block_columns = triton.next_power_of_2(num_columns)
    block_rows = max(1, _BLOCK_SCORES // block_columns)
    launch(
        _top_k_forward_kernel,
        (num_blocks(num_rows, block_rows),),
        scores_RE,
        chosen_RK,
        num_rows,
        num_columns,
        k,
        BLOCK_R=block_rows,
        BLOCK_E=block_columns,
    )
    return chosen_RK


def group_by_expert(token_ids_N: Tensor, expert_ids_N: Tensor, num_tokens: int, num_experts: int) -> Permutation:
    """Build the permutation of pairs whose token ids ascend; any number of pairs per token, even none.

    Args:
        token_ids_N: int64, ascending, each below num_tokens.
        expert_ids_N: int64, each below num_experts.
    """
    num_pairs, device = len(expert_ids_N), expert_ids_N.device
    token_ids_N, expert_ids_N = token_ids_N.contiguous(), expert_ids_N.contiguous()
    blocks = max(1, num_blocks(num_pairs, _BLOCK_PAIRS))
    counts = torch.empty(num_experts, blocks, dtype=torch.int64, device=device)
    launch(
        _group_count_kernel,
        (blocks,),
        expert_ids_N,
        counts,
        num_pairs,
        num_experts,
        blocks,
        BLOCK_N=_BLOCK_PAIRS,
        BLOCK_E=_BLOCK_EXPERTS,
    )
    # One more than there are counts, so that the last difference is the count of the last expert.
    starts = torch.zeros(num_experts * blocks + 1, dtype=torch.int64, device=device)
    torch.cumsum(counts.view(-1), 0, out=starts[1:])

    row_token_ids_N, inverse_N = torch.empty_like(token_ids_N), torch.empty_like(expert_ids_N)
    launch(
        _group_place_kernel,
        (blocks,),
        token_ids_N,
        expert_ids_N,
        starts,
        row_token_ids_N,
        inverse_N,
        num_pairs,
        blocks,
        BLOCK_N=_BLOCK_PAIRS,
    )
    return Permutation(
        token_ids_N=row_token_ids_N,
        inverse_N=inverse_N,
        starts_T=torch.searchsorted(token_ids_N, torch.arange(num_tokens, device=device)),
        counts_E=starts[::blocks].diff(),
    )


@triton.jit
def _top_k_forward_kernel(  # type: ignore[no-untyped-def]
    scores_ptr, chosen_ptr, num_rows, num_columns, k, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr
):
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_E)
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    # Columns that do not exist lose each tie: they are the lowest, and the last.
    scores = tl.load(scores_ptr + rows[:, None] * num_columns + columns[None, :], mask=inside, other=float("-inf"))
    bits = scores.to(tl.float32).to(tl.int32, bitcast=True)
    # All in integers: -0.0 is 0.0, and a NaN is the largest whatever its sign.
    magnitude = bits & 0x7FFFFFFF
    monotone = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    monotone = tl.where(magnitude == 0, 0, monotone)
    monotone = tl.where(magnitude > 0x7F800000, 0x7FFFFFFF, monotone)
    keys = (monotone.to(tl.int64) << 32) - columns[None, :]
    for place in range(k):
        best = tl.max(keys, axis=1)
        tl.store(chosen_ptr + rows * k + place, (-best).to(tl.int32), mask=rows < num_rows)
        keys = tl.where(keys == best[:, None], -(2**63), keys)


@triton.jit
def _group_count_kernel(  # type: ignore[no-untyped-def]
    experts_ptr, counts_ptr, num_pairs, num_experts, num_blocks, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr
):
    block = tl.program_id(0)
    pairs = block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    experts = tl.load(experts_ptr + pairs, mask=pairs < num_pairs, other=-1).to(tl.int32)
    for first in range(0, num_experts, BLOCK_E):
        columns = first + tl.arange(0, BLOCK_E)
        counts = tl.sum((experts[:, None] == columns[None, :]).to(tl.int32), axis=0)
        tl.store(counts_ptr + columns.to(tl.int64) * num_blocks + block, counts, mask=columns < num_experts)


@triton.jit
def _group_place_kernel(  # type: ignore[no-untyped-def]
    tokens_ptr, experts_ptr, starts_ptr, row_tokens_ptr, inverse_ptr, num_pairs, num_blocks, BLOCK_N: tl.constexpr
):
    block = tl.program_id(0)
    lanes = tl.arange(0, BLOCK_N)
    pairs = block.to(tl.int64) * BLOCK_N + lanes
    inside = pairs < num_pairs
    experts = tl.load(experts_ptr + pairs, mask=inside, other=-1)
    earlier = (experts[:, None] == experts[None, :]) & (lanes[:, None] > lanes[None, :])
    ranks = tl.sum(earlier.to(tl.int32), axis=1)
    places = tl.load(starts_ptr + experts * num_blocks + block, mask=inside, other=0) + ranks
    tl.store(inverse_ptr + pairs, places, mask=inside)
    tl.store(row_tokens_ptr + places, tl.load(tokens_ptr + pairs, mask=inside, other=0), mask=inside)
