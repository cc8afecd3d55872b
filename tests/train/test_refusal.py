"""What a run refuses to begin or to go on from, and that the run folder stays as it was."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesaic.errors import CheckpointError, ConfigError, DataError, MemoryBudgetError
from moesaic.train import start
from moesaic.train.run import train
from tests.checkpoint.stored import edit_checkpoint
from tests.train.conftest import Recipe
from tests.train.stop_at import signal_after

# Each with what the error names.
FIXED: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"model.hidden_size": 64}, r"model.hidden_size is 64, and was 32 when the run began$"),
    "router": ({"model.router": "sigmoid"}, "model.router is 'sigmoid', and was 'softmax'"),
    "two": ({"model.num_experts": 8, "model.hidden_size": 64}, r"and was .* \(and 1 more\)"),
    "optimizer": ({"optim.kind": "lion"}, "optim.kind is 'lion', and was 'adamw'"),
    "tokenizer": ({"tokenizer.vocab_size": 280}, "tokenizer.vocab_size is 280, and was None"),
}


def _snapshot_folder(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def stopped(recipe: Recipe) -> Path:
    """The folder of a run that was stopped after its second step."""
    with signal_after(2):
        return train(recipe()).folder.path


@pytest.mark.parametrize(("changes", "named"), FIXED.values(), ids=FIXED)
def test_resume_is_refused_and_changes_nothing_when_the_recipe_changed_in(
    changes: dict[str, Any], named: str, recipe: Recipe, stopped: Path
) -> None:
    before = _snapshot_folder(stopped)
    with pytest.raises(ConfigError, match=named):
        train(recipe(changes))
    assert _snapshot_folder(stopped) == before


def test_resume_tells_what_changed_and_goes_on_when_a_recipe_may_change(
    recipe: Recipe, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe({"optim.learning_rate": 0.005, "checkpoint.keep_last": 1}))
    told = capsys.readouterr().err
    assert "optim.learning_rate is 0.005, was 0.01 before" in told
    assert "checkpoint.keep_last is 1, was 2 before" in told


def test_resume_is_refused_when_steps_lie_below_the_checkpoint(recipe: Recipe, stopped: Path) -> None:
    with pytest.raises(ConfigError, match=r"the checkpoint is at step 2, train.steps is 1$"):
        train(recipe({"train.steps": 1}))


def test_fresh_start_is_refused_when_resume_is_never_and_checkpoints_exist(recipe: Recipe, stopped: Path) -> None:
    with pytest.raises(ConfigError, match=r"--resume never, but .* holds checkpoints up to step-00000002"):
        train(recipe(), resume="never")


def test_resume_is_refused_when_the_path_is_no_checkpoint(recipe: Recipe, stopped: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint") as raised:
        train(recipe(), resume=str(stopped))
    assert raised.value.hint.endswith("here: step-00000002")
    with pytest.raises(CheckpointError, match="--resume 'latest' is no checkpoint") as raised:
        train(recipe(out="new"), resume="latest")
    assert raised.value.hint.endswith("here: none")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _edit_state(path: Path, **changes: Any) -> None:
    content = {**json.loads((path / "state.json").read_text()), **changes}
    kept = {key: value for key, value in content.items() if key not in changes or value is not None}
    (path / "state.json").write_text(json.dumps(kept))


def _flip_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 4
    file.write_bytes(content)


SUMS = "model/rank-00000.sums"
MODEL, OPTIMIZER = "model/rank-00000.safetensors", "optimizer/rank-00000.safetensors"
DAMAGES: dict[str, tuple[Any, str]] = {
    "cut_weights": (lambda path: _cut(path / MODEL), "is damaged: 'model/rank-00000.safetensors' has .* were written"),
    "cut_moments": (lambda path: _cut(path / OPTIMIZER), "is damaged"),
    "flipped_bit": (
        lambda path: _flip_bit(path / OPTIMIZER),
        "is damaged: 'optimizer/.*' has other bytes within 65536",
    ),
    "no_sums": (lambda path: (path / SUMS).unlink(), "is damaged: the sums of 'model/.*' cannot be read: No such file"),
    "flipped_sum": (lambda path: _flip_bit(path / SUMS), "the sums of 'model/.*' are not those that were written"),
    "flipped_header": (
        lambda path: (path / MODEL).write_bytes(
            (path / MODEL).read_bytes().replace(b'"format": "pt"', b'"format": "pq"')
        ),
        "is damaged: 'model/rank-00000.safetensors' has other bytes within 65536 from byte 0 on",
    ),
    "cut_state": (lambda path: _cut(path / "state.json"), "is damaged"),
    "empty_state": (lambda path: (path / "state.json").write_text("[]"), "is damaged"),
    "odd_files": (lambda path: _edit_state(path, files={MODEL: {}}), "is damaged: state.json does not tell its files"),
    "old_format": (lambda path: _edit_state(path, format=1), "has format 1, this version reads 2"),
    "no_moments": (lambda path: (path / OPTIMIZER).unlink(), "lacks 'optimizer/rank-00000.safetensors', one of its 3"),
    "no_random": (lambda path: edit_checkpoint(path, "random", lambda key, value: None), "lacks 'random'"),
    "strange_file": (
        lambda path: (path / "model" / "rank-00001.safetensors").write_bytes(b"any"),
        "holds 'model/rank-00001.safetensors', which is none of the 3 files",
    ),
    "no_place": (lambda path: _edit_state(path, loader=None), "lacks 'loader'"),
    "no_recipe": (lambda path: _edit_state(path, config=None), "does not tell its recipe and step: 'config'"),
    "odd_recipe": (lambda path: _edit_state(path, config=5), "does not tell its recipe and step"),
    "foreign_recipe": (lambda path: _edit_state(path, config={"a": 1}), "unknown key 'a'"),
    "odd_step": (lambda path: _edit_state(path, step="two"), "does not tell its recipe and step"),
    "few_moments": (
        lambda path: edit_checkpoint(path, "optimizer", lambda key, value: None if "experts" in key else value),
        "its optimizer has '.*' not at all, expected of float32",
    ),
    "narrow_moments": (
        lambda path: edit_checkpoint(path, "optimizer", lambda key, value: value[:3] if key.endswith("avg") else value),
        r"exp_avg' of float32 \[3.*\], expected of float32",
    ),
    "other_shape": (
        lambda path: edit_checkpoint(path, "model", lambda key, value: value[:, :9] if "head" in key else value),
        r"its model has 'head.weight' of float32 \[300, 9\], expected of float32 \[300, 32\]",
    ),
    "more_weights": (
        lambda path: edit_checkpoint(path, "model", lambda key, value: value.double() if "norm" in key else value),
        r"norm.weight' of float64 \[32\], expected of float32 \[32\] \(and \d+ more\)",
    ),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGES.values(), ids=DAMAGES)
def test_resume_is_refused_and_changes_nothing_when_the_checkpoint_has(
    damage: Any, named: str, recipe: Recipe, stopped: Path
) -> None:
    damage(stopped / "checkpoints" / "step-00000002")
    before = _snapshot_folder(stopped)
    with pytest.raises(CheckpointError, match=named) as raised:
        train(recipe())
    assert raised.value.hint.startswith("resume ")
    assert _snapshot_folder(stopped) == before


def test_run_goes_on_from_the_checkpoint_before_when_the_last_one_is_damaged(recipe: Recipe) -> None:
    changes = {"checkpoint.every": 2}
    folder = train(recipe(changes)).folder.path
    _cut(folder / "checkpoints" / "step-00000008" / "state.json")
    with pytest.raises(CheckpointError, match=r"step-00000008' is damaged"):
        train(recipe(changes))
    outcome = train(recipe(changes), resume=str(folder / "checkpoints" / "step-00000006"))
    assert outcome.summary["steps"] == 8


UNPREPARED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no_text": ({"data.source": "/no/such/text"}, DataError, "no file or folder at"),
    "little_text": ({"data.source": "{tmp}/little.txt"}, DataError, "training tokens"),
    "no_tokenizer": ({"tokenizer.path": "{tmp}/none"}, DataError, "no tokenizer at"),
    "small_vocabulary": ({"model.vocab_size": 100}, ConfigError, "vocab"),
    "no_start": ({"train.init_from": "{tmp}/none"}, CheckpointError, "no model folder at"),
}


@pytest.mark.parametrize(("changes", "kind", "named"), UNPREPARED.values(), ids=UNPREPARED)
def test_no_run_folder_is_left_when_a_run_cannot_begin_for(
    changes: dict[str, Any], kind: type[Exception], named: str, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "little.txt").write_text("a few words")
    given = {key: str(value).replace("{tmp}", str(tmp_path)) for key, value in changes.items()}
    with pytest.raises(kind, match=named):
        train(recipe(given))
    assert not (tmp_path / "run").exists()


def test_resume_is_refused_before_anything_is_read_when_the_run_is_in_use(recipe: Recipe, stopped: Path) -> None:
    from moesaic.train.run_folder import RunFolder

    other = RunFolder(stopped)
    other.acquire()
    try:
        with pytest.raises(ConfigError, match="in use by another process"):
            train(recipe())
    finally:
        other.release()
    assert train(recipe()).interrupted is None


def test_run_is_refused_before_it_is_built_when_its_state_exceeds_the_memory(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "available_bytes", lambda: 100_000)
    with pytest.raises(MemoryBudgetError, match=r"training .* parameters takes .* 97.7 KiB are free") as raised:
        train(recipe())
    assert "smaller model" in raised.value.hint
    with pytest.raises(MemoryBudgetError):
        train(recipe({"model.num_experts": 1024, "model.num_experts_per_tok": 1}))


def test_run_begins_without_the_copy_of_checkpoints_when_it_is_refused_with_it(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 44,200 parameters take 16 bytes each, and the copy 12.
    monkeypatch.setattr(start, "available_bytes", lambda: 900_000)
    with pytest.raises(MemoryBudgetError, match=r"takes 1\.18 MiB before any activation") as raised:
        train(recipe())
    assert "checkpoint.asynchronous = false" in raised.value.hint
    assert train(recipe({"checkpoint.asynchronous": False})).interrupted is None


def test_resume_is_refused_when_a_part_of_the_model_section_was_taken_away(recipe: Recipe) -> None:
    stretched = {"model.rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    with signal_after(2):
        train(recipe(stretched))
    with pytest.raises(ConfigError, match=r"cannot resume: model\.rope_scaling is None, and was \{"):
        train(recipe())
