"""How many ranks each axis gets: pure arithmetic, for any number of ranks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.config.model import ModelConfig
from moesaic.config.parallel import ParallelConfig
from moesaic.errors import ConfigError
from moesaic.models.model import LanguageModel
from moesaic.nn.attention import SelfAttention
from moesaic.nn.mlp import GatedMlp


@dataclass(frozen=True)
class Degrees:
    """Ranks along each axis.

    Attributes:
        data_replicate, data_shard, tensor: multiply to the number of ranks.
        expert: divides it.
        splits_embedding: whether embedding table and head are in parts, one a rank.
    """

    data_replicate: int
    data_shard: int
    expert: int
    tensor: int = 1
    splits_embedding: bool = False

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return self.data_replicate * self.data_shard * self.tensor

    @property
    def expert_replicate(self) -> int:
        """Return how many ranks keep the same experts."""
        return self.size // self.expert

    def own_parameters(self, model: LanguageModel) -> int:
        """Return how many parameters of a model a rank keeps, at most."""
        experts = sum(each.numel() for moe in model.moe_layers().values() for each in moe.experts.parameters())
        dense = sum(each.numel() for each in model.parameters()) - experts
        shared = sum(_width_parameters(model)) if self.tensor > 1 else 0
        embedding = 2 * model.decoder.embedding.weight.numel() if self.splits_embedding else 0
        shares = self.data_shard * self.tensor if self.data_shard > 1 else 1
        parts = (dense - shared - embedding, shares), (shared, self.data_shard * self.tensor), (embedding, self.size)
        return sum(-(-size // count) for size, count in parts) + experts // self.expert


def plan_degrees(config: ParallelConfig, model: ModelConfig, num_ranks: int) -> Degrees:
    """Fill in the degrees that a recipe leaves open.

    Raises:
        ConfigError: the degrees do not fit the number of ranks, of experts, or of heads.
    """
    shard, replicate, tensor = config.data_shard, config.data_replicate, config.tensor
    _check_tensor(tensor, model, num_ranks)
    rest = num_ranks // tensor
    times = f" times parallel.tensor {tensor}" if tensor > 1 else ""
    if replicate is None:
        if rest % shard:
            raise ConfigError(
                f"parallel.data_shard is {shard}, which does not divide the {rest} ranks"
                + (f" that parallel.tensor = {tensor} leaves of {num_ranks}" if tensor > 1 else ""),
                f"choose one of {_listed(_divisors(rest))}, or start another number of ranks",
            )
        replicate = rest // shard
    if replicate * shard * tensor != num_ranks:
        raise ConfigError(
            f"parallel.data_replicate {replicate} times parallel.data_shard {shard}{times} is "
            f"{replicate * shard * tensor}, but there are {num_ranks} ranks",
            f"start {replicate * shard * tensor} ranks, or leave parallel.data_replicate out",
        )
    splits = config.embedding == "split"
    if splits:
        _check_embedding(model, num_ranks)
    return Degrees(replicate, shard, _expert_degree(config.expert, model, num_ranks), tensor, splits)


def _check_embedding(model: ModelConfig, num_ranks: int) -> None:
    way_out = "leave parallel.embedding = 'whole'"
    if model.tie_word_embeddings:
        raise ConfigError(
            "parallel.embedding is 'split', but the model's table is its head too",
            f"{way_out}, or set model.tie_word_embeddings = false",
        )
    if model.hidden_size % num_ranks:
        raise ConfigError(
            f"parallel.embedding is 'split', but {num_ranks} ranks do not divide the {model.hidden_size} columns of "
            "the table",
            f"{way_out}, or start one of {_listed(_divisors(model.hidden_size))} ranks",
        )
    if -(-model.vocab_size // num_ranks) * (num_ranks - 1) >= model.vocab_size:
        raise ConfigError(
            f"parallel.embedding is 'split', but a vocabulary of {model.vocab_size} leaves some of {num_ranks} ranks "
            "without a row of the head",
            way_out,
        )


def _check_tensor(tensor: int, model: ModelConfig, num_ranks: int) -> None:
    counts = {
        "ranks": num_ranks,
        "attention heads": model.num_attention_heads,
        "key/value heads": model.kv_heads,
        **{f"channels of {name}": width for name, width in _mlp_widths(model).items()},
    }
    for what, count in counts.items():
        if count % tensor:
            possible = _divisors(math.gcd(*counts.values()))
            raise ConfigError(
                f"parallel.tensor is {tensor}, which does not divide the {count} {what}",
                f"choose one of {_listed(possible)}",
            )


def _mlp_widths(model: ModelConfig) -> dict[str, int]:
    """Return the widths of the MLPs that every token takes."""
    is_moe = [model.is_moe_layer(layer) for layer in range(model.num_hidden_layers)]
    widths = {} if all(is_moe) else {"a dense MLP": model.intermediate_size}
    shared = model.shared_expert_intermediate_size
    return widths | ({"a shared expert": shared} if shared and any(is_moe) else {})


def _width_parameters(model: LanguageModel) -> Iterator[int]:
    """Yield the sizes of what `parallel.tensor` cuts."""
    for module in model.modules():
        if isinstance(module, SelfAttention):
            yield from (each.weight.numel() for each in (module.query, module.key, module.value, module.output))
        if isinstance(module, GatedMlp):
            yield from (each.numel() for each in module.parameters())


def _expert_degree(asked: int | None, model: ModelConfig, num_ranks: int) -> int:
    num_experts = model.num_experts if any(map(model.is_moe_layer, range(model.num_hidden_layers))) else 1
    possible = [degree for degree in _divisors(num_ranks) if num_experts % degree == 0]
    if asked is None:
        return max(possible)
    if asked not in possible:
        what = f"the {num_ranks} ranks" if num_ranks % asked else f"the {num_experts} experts of a layer"
        raise ConfigError(
            f"parallel.expert is {asked}, which does not divide {what}",
            f"choose one of {_listed(possible)}, or leave it out",
        )
    return asked


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
