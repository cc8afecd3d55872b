"""The tokens that end a text: those that a checkpoint names, and stop strings that are tokens themselves."""

from pathlib import Path

from moesaic.checkpoint.folder import read_json
from moesaic.errors import CheckpointError
from moesaic.infer.request import SamplingParams
from moesaic.tokenizer.tokenizer import Tokenizer


def read_end_ids(folder: Path, config_ids: list[int]) -> set[int]:
    """Return the end tokens of config.json and generation_config.json together.

    Chat checkpoints often name the end of a turn in generation_config.json alone.

    Args:
        folder: of the checkpoint.
        config_ids: those of config.json.

    Raises:
        CheckpointError: generation_config.json cannot be read, or names something else than token ids.
    """
    path = folder / "generation_config.json"
    told = read_json(path).get("eos_token_id") if path.is_file() else None
    ids = told if isinstance(told, list) else [] if told is None else [told]
    if not all(type(each) is int for each in ids):
        raise CheckpointError(f"'{path}' has eos_token_id {told!r}", "accepted: a token id or a list of them")
    return {*config_ids, *ids}


def choose_end_ids(params: SamplingParams, end_ids: set[int], tokenizer: Tokenizer | None) -> set[int]:
    """Return the tokens that end one answer.

    A special token has no text, so that a stop string which is its name could never be found in the answer.
    """
    stop_ids = set() if tokenizer is None else {tokenizer.special_ids.get(stop) for stop in params.stop}
    return {each for each in stop_ids if each is not None} | (set() if params.ignore_eos else end_ids)
