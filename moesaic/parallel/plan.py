"""How many ranks each axis gets: pure arithmetic, for any number of ranks."""

from dataclasses import dataclass

from moesaic.config.model import ModelConfig
from moesaic.config.parallel import ParallelConfig
from moesaic.errors import ConfigError
from moesaic.models.model import LanguageModel


@dataclass(frozen=True)
class Degrees:
    """Ranks along each axis.

    Attributes:
        data_replicate, data_shard: multiply to the number of ranks.
        expert: divides it.
    """

    data_replicate: int
    data_shard: int
    expert: int

    @property
    def size(self) -> int:
        """Return the number of ranks."""
        return self.data_replicate * self.data_shard

    @property
    def expert_replicate(self) -> int:
        """Return how many ranks keep the same experts."""
        return self.size // self.expert

    def own_parameters(self, model: LanguageModel) -> int:
        """Return how many parameters of a model a rank keeps, at most."""
        experts = sum(each.numel() for moe in model.moe_layers().values() for each in moe.experts.parameters())
        dense = sum(each.numel() for each in model.parameters()) - experts
        return -(-dense // self.data_shard) + experts // self.expert


def plan_degrees(config: ParallelConfig, model: ModelConfig, num_ranks: int) -> Degrees:
    """Fill in the degrees that a recipe leaves open.

    Raises:
        ConfigError: the degrees do not fit the number of ranks, or of experts.
    """
    shard, replicate = config.data_shard, config.data_replicate
    if replicate is None:
        if num_ranks % shard:
            raise ConfigError(
                f"parallel.data_shard is {shard}, which does not divide the {num_ranks} ranks",
                f"choose one of {_listed(_divisors(num_ranks))}, or start another number of ranks",
            )
        replicate = num_ranks // shard
    if replicate * shard != num_ranks:
        raise ConfigError(
            f"parallel.data_replicate {replicate} times parallel.data_shard {shard} is {replicate * shard}, "
            f"but there are {num_ranks} ranks",
            f"start {replicate * shard} ranks, or leave parallel.data_replicate out",
        )
    return Degrees(replicate, shard, _expert_degree(config.expert, model, num_ranks))


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
