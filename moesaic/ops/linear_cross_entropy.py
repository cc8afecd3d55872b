"""Cross-entropy of hidden states under an output head, without the logits.

The logits [T, V] are the largest tensor of a training step, and one product makes them again. So they exist only as
tiles, some tokens by some of the vocabulary, and each is dropped once it is used (after Wijmans et al., 2024, "Cut
Your Losses in Large-Vocabulary Language Models", sections 3 and 4):

    forward     for each run of tokens, over the vocabulary: a running logsumexp, and the label's own logit
    backward    for each run of the vocabulary, over the tokens: the tile again, and its gradient G = dloss/dlogits,
                then grad_hidden[tokens] += G @ head[run]; at last grad_head[run] = G.T @ hidden, over all tokens

This takes four products where keeping the logits takes three. Three would do here as well, with all of the vocabulary
for a few tokens at a time. But then each such run reads and writes all of grad_head, which bfloat16 would have to keep
in float32 beside the result, and products of the hundred rows that fit the same memory are slow. On one core of a Xeon
with AMX (2,048 tokens, D 1024, V 50,304, processor time), products and passes of that way added up to 6.1 s in float32
and 2.3 s in bfloat16; those of this one to 5.4 s and 1.1 s. Against torch with the logits kept, in memory that the
process already holds, a loss and its gradients take as long in bfloat16 and 1.3 times as long in float32, where the
fourth product is dear.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.errors import ConfigError, UnsupportedError
from moesaic.ops.loss import IGNORED_LABEL

# Sides of a tile: smaller ones leave the products slow, larger ones leave the cache.
_TOKENS = 1024
_COLUMNS = 1024


def linear_cross_entropy(
    hidden_TD: Tensor, head: Tensor, labels_T: Tensor, smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Return the summed cross-entropy of the labels under softmax(hidden_TD @ head.T), in nats.

    With logits x and L = logsumexp(x), each token whose label y is not -100 adds

        L - (1 - smoothing) x[y] - smoothing mean(x) + z_loss L^2

    Args:
        hidden_TD: [T, D] of any floating dtype. Products are taken in it, all else in float32, or float64 for float64.
        head: [V, D] of any floating dtype, such as float32 master weights; cast a run at a time.
        labels_T: [T] int64, each in 0..V-1, or -100: such a token counts nowhere and takes part in no product.
        smoothing: share of a label's weight that is spread over the vocabulary, 0..1 (Szegedy et al., 2016,
            "Rethinking the Inception Architecture for Computer Vision", section 7).
        z_loss: coefficient that pulls L to zero, 0 or more (Chowdhery et al., 2022, "PaLM", section 5).

    Returns:
        A scalar in float32, or float64 for float64, differentiable once in hidden_TD and head; NaN and infinity pass
        through. Waits for the device, which tells whether the labels are in range. Equal bits in every run.

        Memory beyond inputs and gradients, with tiles of t = 1,024 tokens by v = 1,024 columns. Forward: t v elements
        of the dtype of hidden_TD, and in float32 where that is narrow. Backward: T v elements; where it is narrow
        T v again, the float32 sum [T, D] that becomes grad_hidden, and for a moment t (v or D) in float32. Where some
        labels are ignored, a copy of the hidden states of the others; where the dtypes differ, v D elements twice.

    Raises:
        ConfigError: a shape, device, label or coefficient does not fit.
        UnsupportedError: hidden_TD or head is not floating, or labels_T not int64; a second derivative is asked for.
    """
    _check(hidden_TD, head, labels_T)
    if not 0 <= smoothing <= 1:
        raise ConfigError(f"linear_cross_entropy got smoothing of {smoothing}", "it must lie within 0..1")
    if not z_loss >= 0:
        raise ConfigError(f"linear_cross_entropy got z_loss of {z_loss}", "it must be 0 or more")
    counts_T = labels_T != IGNORED_LABEL
    if not counts_T.all():
        hidden_TD, labels_T = hidden_TD[counts_T], labels_T[counts_T]
    return _LinearCrossEntropy.apply(hidden_TD, head, labels_T, smoothing, z_loss)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TD, head, labels_T, smoothing, z_loss):  # type: ignore[no-untyped-def]
        logsumexp_T, loss_T = score_labels(hidden_TD, head, labels_T, smoothing).finish()
        ctx.save_for_backward(hidden_TD, head, labels_T, logsumexp_T)
        ctx.smoothing, ctx.z_loss = smoothing, z_loss
        if z_loss:
            loss_T.addcmul_(logsumexp_T, logsumexp_T, value=z_loss)
        return loss_T.sum()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        refuse_second_derivative()
        hidden_TD, head, labels_T, logsumexp_T = ctx.saved_tensors
        # G = (1 + 2 z_loss L) softmax(x) - (1 - smoothing) [v = y] - smoothing / V, times what comes in.
        slopes = Slopes(
            grad * (1 + 2 * ctx.z_loss * logsumexp_T),
            (grad * (ctx.smoothing - 1)).expand_as(logsumexp_T),
            grad * (ctx.smoothing / max(1, len(head))) if ctx.smoothing else None,
        )
        grads = differentiate(hidden_TD, head, labels_T, logsumexp_T, slopes, ctx.needs_input_grad[:2])
        return *grads, None, None, None


@dataclass(frozen=True)
class Scores:
    """What a forward pass knows of tokens, under a head or under some rows of one.

    Attributes:
        largest_T: a number no logit exceeds by much.
        total_T: sum of exp(x - largest).
        target_T: (1 - smoothing) x[y] + smoothing mean(x); nothing of a label that is elsewhere.
    """

    largest_T: Tensor
    total_T: Tensor
    target_T: Tensor

    def finish(self) -> tuple[Tensor, Tensor]:
        """Return L and L - target of each token."""
        log_T = self.total_T.log()
        # In this order, which keeps the small loss of a sure token: there the largest logit is the label's own.
        return log_T + self.largest_T, self.largest_T - self.target_T + log_T


def score_labels(hidden_TD: Tensor, head: Tensor, labels_T: Tensor, smoothing: float = 0.0) -> Scores:
    """Score labels, each a row of the head or none of them; the logits exist as tiles only."""
    dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
    found = []
    for rows in _runs(len(hidden_TD), _TOKENS):
        # The least finite number, not -inf: a run of nothing but -inf must not give NaN where others are finite.
        largest_T = hidden_TD.new_full((len(hidden_TD[rows]),), torch.finfo(dtype).min, dtype=dtype)
        total_T = torch.zeros_like(largest_T)
        target_T = torch.zeros_like(largest_T)
        for columns in _runs(len(head), _COLUMNS):
            weight = head[columns].to(hidden_TD.dtype)
            logits_TV = torch.mm(hidden_TD[rows], weight.t()).to(dtype)
            within_T, index_T1 = _find(labels_T[rows], columns)
            own_T = logits_TV.gather(1, index_T1).squeeze(1)
            target_T += torch.where(within_T, (1 - smoothing) * own_T, 0)
            if smoothing:
                target_T += logits_TV.sum(1).mul_(smoothing / len(head))
            larger_T = torch.maximum(largest_T, logits_TV.amax(1))
            total_T.mul_((largest_T - larger_T).exp_()).add_(logits_TV.sub_(larger_T[:, None]).exp_().sum(1))
            largest_T = larger_T
        found.append(torch.stack([largest_T, total_T, target_T]))
    none = hidden_TD.new_empty(3, 0, dtype=dtype)
    return Scores(*torch.cat([none, *found], dim=1))


@dataclass(frozen=True)
class Slopes:
    """How the gradient of a token's logits is made of its softmax and its label.

    Attributes:
        scale_T: times the softmax.
        at_label_T: added where the label is.
        everywhere: taken from all; None: nothing.
    """

    scale_T: Tensor
    at_label_T: Tensor
    everywhere: Tensor | None = None


def differentiate(
    hidden_TD: Tensor,
    head: Tensor,
    labels_T: Tensor,
    logsumexp_T: Tensor,
    slopes: Slopes,
    needed: Sequence[bool] = (True, True),
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the hidden states and of the head, those that are needed, in their dtypes.

    Args:
        hidden_TD, head, labels_T: as for `score_labels`; the head may be some rows of a larger one.
        logsumexp_T: L over all rows.
    """
    dtype = logsumexp_T.dtype
    grad_hidden_TD = torch.zeros_like(hidden_TD, dtype=dtype) if needed[0] else None
    grad_head = torch.empty_like(head, memory_format=torch.contiguous_format) if needed[1] else None
    for columns in _runs(len(head), _COLUMNS):
        weight = head[columns].to(hidden_TD.dtype)
        grad_TV = hidden_TD.new_empty(len(hidden_TD), len(weight))
        for rows in _runs(len(hidden_TD), _TOKENS):
            tile_TV = torch.mm(hidden_TD[rows], weight.t(), out=grad_TV[rows])
            wide_TV = tile_TV.to(dtype).sub_(logsumexp_T[rows, None]).exp_().mul_(slopes.scale_T[rows, None])
            if slopes.everywhere is not None:
                wide_TV.sub_(slopes.everywhere)
            within_T, index_T1 = _find(labels_T[rows], columns)
            wide_TV.scatter_add_(1, index_T1, torch.where(within_T, slopes.at_label_T[rows], 0)[:, None])
            tile_TV.copy_(wide_TV)  # nothing to do where they are one tensor
            del wide_TV
            if grad_hidden_TD is not None:
                _add_product(grad_hidden_TD[rows], tile_TV, weight)
        if grad_head is not None:
            turned_VT = grad_TV.t()
            if turned_VT.dtype != dtype:
                # oneDNN takes longer for a transposed left operand in bfloat16 than for a copy and a plain one.
                turned_VT = turned_VT.contiguous()
            _set_product(grad_head[columns], turned_VT, hidden_TD)
            del turned_VT
        del grad_TV  # before the next one is made
    return None if grad_hidden_TD is None else grad_hidden_TD.to(hidden_TD.dtype), grad_head


def refuse_second_derivative() -> None:
    """Refuse to be differentiated again.

    Raises:
        UnsupportedError: the gradient is computed with a graph of its own.
    """
    if torch.is_grad_enabled():
        # Only create_graph leads here. torch's once_differentiable would give a constant: what comes in is one.
        raise UnsupportedError("linear_cross_entropy has no second derivative", "differentiate without create_graph")


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += torch.mm(left, right)


def _set_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(torch.mm(left, right))


def _runs(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _find(labels_T: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return which labels lie within these columns, and the place [T, 1] of each there; 0 for the others."""
    within_T = (labels_T >= columns.start) & (labels_T < columns.stop)
    return within_T, torch.where(within_T, labels_T - columns.start, 0).unsqueeze(1)


def _check(hidden_TD: Tensor, head: Tensor, labels_T: Tensor) -> None:
    name = "linear_cross_entropy got"
    for argument, tensor, shape in (("hidden_TD", hidden_TD, "[T, D]"), ("head", head, "[V, D]")):
        if tensor.dim() != 2:
            raise ConfigError(f"{name} {argument} of shape {tuple(tensor.shape)}", f"it must be {shape}")
        if not tensor.is_floating_point():
            raise UnsupportedError(f"{name} {argument} of {tensor.dtype}", "it must be floating point")
    if hidden_TD.shape[1] != head.shape[1]:
        raise ConfigError(
            f"{name} head of shape {tuple(head.shape)} with hidden_TD of shape {tuple(hidden_TD.shape)}",
            "their widths D must be equal",
        )
    if labels_T.shape != hidden_TD.shape[:1]:
        raise ConfigError(
            f"{name} labels_T of shape {tuple(labels_T.shape)} with hidden_TD of shape {tuple(hidden_TD.shape)}",
            "there must be one label a token",
        )
    if labels_T.dtype != torch.int64:
        raise UnsupportedError(f"{name} labels_T of {labels_T.dtype}", "they must be torch.int64")
    if not hidden_TD.device == head.device == labels_T.device:
        raise ConfigError(
            f"{name} hidden_TD on {hidden_TD.device}, head on {head.device} and labels_T on {labels_T.device}",
            "all three must be on one device",
        )
    outside_T = ((labels_T < 0) | (labels_T >= len(head))) & (labels_T != IGNORED_LABEL)
    if outside_T.any():
        token = int(outside_T.nonzero()[0])
        raise ConfigError(
            f"{name} label {int(labels_T[token])} at token {token} with a head of {len(head)} rows",
            f"a label must lie within 0..{len(head) - 1} or be {IGNORED_LABEL}",
        )
