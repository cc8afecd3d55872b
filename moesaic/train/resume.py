"""Which checkpoint a run continues from, and whether it may."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moesaic.checkpoint.store import CheckpointStore
from moesaic.config.load import check_section
from moesaic.config.run import RunConfig
from moesaic.errors import CheckpointError, ConfigError


def choose_checkpoint(store: CheckpointStore, resume: str) -> Path | None:
    """Return the checkpoint to continue from, or None for a fresh start.

    Args:
        resume: 'auto' (the latest, if there is one), 'never', or a checkpoint's path.

    Raises:
        ConfigError: 'never', but the run folder has checkpoints that a fresh start would overwrite.
        CheckpointError: the path is no checkpoint.
    """
    latest = store.latest()
    if resume == "auto":
        return latest
    if resume == "never":
        if latest is not None:
            raise ConfigError(
                f"--resume never, but '{store.folder}' holds checkpoints up to {latest.name}",
                "choose another train.out, or remove them",
            )
        return None
    if not (Path(resume) / "state.json").is_file():
        found = ", ".join(path.name for path in store.steps().values()) or "none"
        raise CheckpointError(f"--resume '{resume}' is no checkpoint", f"auto, never, or a path; here: {found}")
    return Path(resume)


def check_resumable(state: Mapping[str, Any], config: RunConfig) -> dict[str, tuple[object, object]]:
    """Compare a recipe with the one a checkpoint was made with, of which `read_state` gave this.

    Returns:
        The keys that differ, each with (value now, value then), all of them such that a run may change.

    Raises:
        ConfigError: the model or tokenizer section or the kind of optimizer differs, or the run is shorter.
        CheckpointError: the checkpoint's own recipe cannot be read.
    """
    try:
        before = check_section(RunConfig, dict(state["config"]), "the checkpoint's recipe")
        step = int(state["step"])
    except (KeyError, TypeError, ValueError, ConfigError) as failure:
        raise CheckpointError(
            f"the checkpoint does not tell its recipe and step: {failure}", "resume from another one"
        ) from None
    changes = config.changes_from(before)
    fixed = [key for key in changes if key.startswith(("model.", "tokenizer.")) or key == "optim.kind"]
    if fixed:
        now, then = changes[fixed[0]]
        more = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
        raise ConfigError(
            f"cannot resume: {fixed[0]} is {now!r}, and was {then!r} when the run began{more}",
            "change it back, or start a new run with another train.out",
        )
    if step > config.train.steps:
        raise ConfigError(
            f"cannot resume: the checkpoint is at step {step}, train.steps is {config.train.steps}",
            "raise train.steps, or resume from an earlier checkpoint",
        )
    return changes
