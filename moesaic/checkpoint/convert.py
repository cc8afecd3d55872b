"""Writing a checkpoint as a Hugging Face folder."""

from pathlib import Path

from moesaic.checkpoint.export import export_model
from moesaic.checkpoint.folder import find_model
from moesaic.checkpoint.load import DTYPES, load_model
from moesaic.checkpoint.store import load_snapshot
from moesaic.config.load import check_section
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError, ConfigError
from moesaic.models.model import LanguageModel, build_model


def convert_to_hf(source: str, target: Path, dtype: str | None) -> bool:
    """Write `target` from a model folder, a run folder, a hub id or a checkpoint of a run.

    Returns:
        Whether transformers can load it.

    Raises:
        CheckpointError: the source cannot be read or the target not be written.
        ConfigError: unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}'", f"accepted: {', '.join(DTYPES)}")
    is_checkpoint = (Path(source) / "state.json").is_file()
    model = _load_checkpoint(Path(source)) if is_checkpoint else load_model(source, dtype)
    # A checkpoint lies at RUN/checkpoints/STEP, its tokenizer at RUN/tokenizer.
    origin = Path(source).absolute().parents[1] / "tokenizer" if is_checkpoint else find_model(source)
    return export_model(model, target, None if dtype is None else DTYPES[dtype], origin)


def _load_checkpoint(path: Path) -> LanguageModel:
    snapshot = load_snapshot(path)
    try:
        section = snapshot.state["config"]["model"]
        weights = dict(snapshot.tensors["model"])
        config = check_section(ModelConfig, dict(section), str(path))
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"checkpoint '{path}' lacks its recipe or its weights", "give another checkpoint"
        ) from None
    model = build_model(config, device="meta")
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as failure:
        raise CheckpointError(
            f"checkpoint '{path}' does not fit its own recipe: {str(failure).splitlines()[1].strip()}",
            "give another checkpoint",
        ) from None
    return model
