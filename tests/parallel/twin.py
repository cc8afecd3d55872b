"""The same step by one process and by ranks, in float64: what must be equal."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.comm.choose import choose_all_to_all
from moesaic.comm.mesh import build_mesh
from moesaic.comm.world import ALONE, World
from moesaic.config.load import check_section
from moesaic.config.run import RunConfig
from moesaic.data.loader import Batch
from moesaic.models.model import LanguageModel, build_model
from moesaic.nn.init import init_weights
from moesaic.ops.loss import IGNORED_LABEL
from moesaic.optim.table import build_optimizer
from moesaic.parallel.apply import apply_parallel, share_gradients
from moesaic.parallel.part import whole
from moesaic.parallel.plan import plan_degrees
from moesaic.testing.tiny import tiny_config
from moesaic.train.evaluate import evaluate
from moesaic.train.step import StepResult, train_step

Changes = dict[str, Any]
TOLERANCE = 1e-11


def twin_config(changes: Changes) -> RunConfig:
    """Return a recipe of a tiny mixture; changes by dotted key."""
    sections: dict[str, dict[str, Any]] = {
        "model": tiny_config(num_experts=8, router_aux_loss_coef=0.3, router_z_loss_coef=0.2).model_dump(),
        "data": {"source": "nothing", "sequence_length": 12},
        "train": {"out": "nowhere", "steps": 2, "batch_size": 8},
        "optim": {"clip_norm": 0.01, "learning_rate": 0.1},
    }
    for key, value in changes.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return check_section(RunConfig, sections, "twin")


def twin_batch(config: RunConfig) -> Batch:
    """Return random tokens; some are no labels, and not as many in each row."""
    source = torch.Generator().manual_seed(1)
    shape = (config.train.batch_size, config.data.sequence_length + 1)
    ids_BS = torch.randint(config.model.vocab_size, shape, generator=source)
    labels_BS = ids_BS[:, 1:].clone()
    labels_BS[0, 3:] = IGNORED_LABEL
    labels_BS[-1] = IGNORED_LABEL
    return Batch(ids_BS[:, :-1], labels_BS, None, None, 0, (("words", "words"),))


def twin_model(config: RunConfig) -> LanguageModel:
    """Return the model that both begin with."""
    model = build_model(config.model)
    init_weights(model, config.model, config.train.seed)
    model.decoder.recompute = config.train.recompute
    return model.double()


def step_alone(config: RunConfig) -> dict[str, Tensor]:
    """Take two steps in one process."""
    model = twin_model(config)
    return _steps(model, config, ALONE, None)


def step_together(config: RunConfig) -> dict[str, Tensor]:
    """Take two steps as one of the ranks that have met."""
    world = World(dist.get_rank(), dist.get_world_size())
    degrees = plan_degrees(config.parallel, config.model, world.size)
    # As if there were two ranks on each machine.
    mesh = build_mesh(degrees.data_replicate, degrees.data_shard, degrees.expert, 2, degrees.tensor)
    all_to_all = choose_all_to_all(mesh, config.parallel.all_to_all, 100, 100)
    model = apply_parallel(twin_model(config), mesh, all_to_all, degrees.splits_embedding)
    gradients = share_gradients(model, mesh, config.parallel.bucket_bytes)
    return _steps(model, config, world, gradients)


def _steps(model: LanguageModel, config: RunConfig, world: World, gradients: Any) -> dict[str, Tensor]:
    torch.manual_seed(7)
    optimizer = build_optimizer(model, config.optim)
    batch, found = twin_batch(config), {}
    for step in (1, 2):
        found[f"{step} evaluated"] = torch.tensor(evaluate(model, [batch], world), dtype=torch.float64)
        result = train_step(model, optimizer, batch, step, config, world, gradients)
        found |= {f"{step} {name}": value for name, value in _values(result).items()}
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        found |= {f"{step} {name}.grad": whole(grad).clone() for name, grad in grads.items() if grad is not None}
        found |= {f"{step} {name}": whole(tensor).detach().clone() for name, tensor in model.state_dict().items()}
    return found


def _values(result: StepResult) -> dict[str, Tensor]:
    values = {"loss": result.loss, "grad_norm": result.grad_norm, **result.losses}
    found = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    for layer, load in result.loads.items():
        found[f"load {layer}"] = load.tokens_per_expert_E
        found[f"dropped {layer}"] = load.num_dropped
    return found


def differences(changes: Changes) -> dict[str, float]:
    """Return, in a rank, the largest relative difference of each thing that is not equal to the one process's."""
    config = twin_config(changes)
    expected, found = step_alone(config), step_together(config)
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    apart = {}
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        scale = float(tensor.double().abs().max()) or 1.0
        apart[name] = float((found[name].double() - tensor.double()).abs().max()) / scale
    return {name: value for name, value in apart.items() if not value <= TOLERANCE}
