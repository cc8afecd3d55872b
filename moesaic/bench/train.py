"""`moesaic bench train`: a training step against transformers, same shapes, same weights, same run.

Two levels: one MoE block (forward, backward, optimizer), and a whole four-layer model (with loss and clipping).
Outputs are compared before anything is timed. The floor under the block is a dense gated MLP of equal FLOPs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.bench.measure import describe_machine, measure, summarise
from moesaic.bench.peer import build_peer, transformers_version
from moesaic.bench.shape import Shape
from moesaic.bench.startup import bench_startup
from moesaic.checkpoint.mapping import source_choices
from moesaic.config.model import ModelConfig
from moesaic.errors import MoesaicError
from moesaic.hw.allocator import keep_freed_memory
from moesaic.models.model import LanguageModel, build_model
from moesaic.models.table import find_family
from moesaic.nn.init import init_weights
from moesaic.nn.mlp import GatedMlp

Step = Callable[[], object]


BLOCKS = (Shape(1024, 1024, 512, 32, 4), Shape(4096, 256, 384, 16, 2))
MODELS = (Shape(2048, 512, 512, 16, 2),)


def bench_train(repeats: int) -> dict[str, Any]:
    """Measure all cases; return the result as plain data."""
    keep_freed_memory()  # as `moesaic train` does; it serves the peer in the same process as well
    torch.manual_seed(0)
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        cases += [_bench_block(shape, dtype, repeats) for shape in BLOCKS]
        cases += [bench_model(shape, dtype, max(3, repeats // 2)) for shape in MODELS]
    machine = {**describe_machine(), "transformers": transformers_version()}
    startup = bench_startup(repeats)
    return {"benchmark": "train", "machine": machine, "repeats": repeats, "cases": cases, "startup": startup}


def _bench_block(shape: Shape, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    ours, theirs = _twins(shape.config())
    layer, block = ours.moe_layers()[0].to(dtype), theirs.model.layers[0].mlp.to(dtype)
    dense = GatedMlp(shape.width, shape.expert_width * shape.chosen).to(dtype)
    # Within a model a block passes a gradient on; without this, its products would be left out where autograd can.
    hidden_BSD = torch.randn(4, shape.tokens // 4, shape.width).to(dtype).requires_grad_()
    _check_equal(layer(hidden_BSD).hidden_BSD, block(hidden_BSD), dtype)
    steps = {
        "moesaic": _step(layer, lambda: layer(hidden_BSD).hidden_BSD.sum()),
        "transformers": _step(block, lambda: block(hidden_BSD).sum()),
        "dense": _step(dense, lambda: dense(hidden_BSD).sum()),
    }
    return _case("block", shape, dtype, measure(steps, repeats))


def bench_model(
    shape: Shape, dtype: torch.dtype, repeats: int, num_layers: int = 4, vocab_size: int = 8192
) -> dict[str, Any]:
    """Time whole training steps of a model, sequences of 256 tokens, loss, clipping and AdamW among them."""
    config = shape.config(num_layers, vocab_size)
    ours, theirs = _twins(config)
    # Weights too: under autocast transformers computes the experts in float32, which would be other work than ours.
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    ids_BS = torch.randint(config.vocab_size, (shape.tokens // 256, 256))

    def our_loss() -> Tensor:
        output = ours.decode(ids_BS)
        labels_BS = ids_BS[:, 1:]
        loss = ours.cross_entropy_sum(output.hidden_BSD[:, :-1], labels_BS) / labels_BS.numel()
        return loss + config.router_aux_loss_coef * output.losses["balance_loss"]

    def their_loss() -> Tensor:
        return theirs(ids_BS, labels=ids_BS).loss

    with torch.no_grad():
        _check_equal(ours(ids_BS), theirs(ids_BS).logits, dtype)
    steps = {"moesaic": _step(ours, our_loss), "transformers": _step(theirs, their_loss)}
    return _case("model", shape, dtype, measure(steps, repeats))


def _twins(config: ModelConfig) -> tuple[LanguageModel, Any]:
    """Build our model and the peer with the same weights."""
    ours, theirs = build_model(config), build_peer(config)
    init_weights(ours, config, seed=0)
    family, state = find_family(config.model_type), theirs.state_dict()
    with torch.no_grad():
        for name, tensor in ours.state_dict().items():
            choices = [choice.names for choice in source_choices(name, tuple(tensor.shape), family)]
            found = [names[0] for names in choices if len(names) == 1 and names[0] in state]
            state[found[0]].copy_(tensor)
    return ours.train(), theirs.train()


def _step(module: nn.Module, loss_fn: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_fn().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return step


@torch.no_grad()
def _check_equal(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    """Compare token by token: all of them in float32; in bfloat16 the median one.

    In bfloat16 transformers routes in bfloat16 too, where we route in float32: a few near-ties go to other experts.
    """
    errors = (ours.float() - theirs.float()).norm(dim=-1) / theirs.float().norm(dim=-1)
    error, limit = (errors.max(), 1e-5) if dtype == torch.float32 else (errors.median(), 2e-2)
    if not error < limit:
        raise MoesaicError(
            f"outputs differ by {error:.2e} relative, more than {limit:.0e}", "a timing of unequal work means nothing"
        )


def _case(level: str, shape: Shape, dtype: torch.dtype, times: dict[str, list[float]]) -> dict[str, Any]:
    figures = {name: summarise(values) for name, values in times.items()}
    ours = figures["moesaic"]["median_ms"]
    ratios = {f"over_{name}": round(each["median_ms"] / ours, 3) for name, each in figures.items() if name != "moesaic"}
    return {"level": level, "dtype": str(dtype).removeprefix("torch."), **shape.dims(), "times": figures, **ratios}
