"""Finding a model: a folder, a run folder or a checkpoint of a run, and what is told where there is none.

Hub ids are in test_hub.py.
"""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from moesaic.checkpoint.folder import config_file, find_model, find_tokenizer, load_config, read_json
from moesaic.errors import CheckpointError, ConfigError
from moesaic.testing.tiny import tiny_config


def _model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_folder_is_found_as_it_is_when_it_holds_a_config(tmp_path: Path) -> None:
    folder = _model_folder(tmp_path / "some" / "model")
    assert find_model(folder) == find_model(str(folder)) == folder


def test_finished_model_is_found_when_a_run_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    finished = _model_folder(tmp_path / "model")
    assert find_model(tmp_path) == finished


def test_folder_is_found_as_it_is_when_a_run_lies_within_it(tmp_path: Path) -> None:
    folder = _model_folder(tmp_path / "some")
    _model_folder(folder / "model")
    assert find_model(folder) == folder


@pytest.mark.parametrize(
    ("steps", "hint"),
    [
        ([], "let `moesaic train` finish"),
        ([9, 100], "let `moesaic train` finish, or give its last checkpoint: {run}/checkpoints/step-00000100"),
    ],
)
def test_run_folder_is_refused_when_it_holds_no_finished_model(steps: list[int], hint: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    for step in steps:
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"run folder '.*' holds no finished model") as caught:
        find_model(tmp_path)
    assert caught.value.hint == hint.format(run=tmp_path)


def _checkpoint(tmp_path: Path, state: dict[str, Any]) -> Path:
    folder = tmp_path / "run" / "checkpoints" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def test_checkpoint_tells_its_model_and_tokenizer_when_it_is_of_a_run(tmp_path: Path) -> None:
    config = tiny_config(router="sigmoid")
    folder = _checkpoint(tmp_path, {"config": {"model": config.model_dump(mode="json")}})
    assert find_model(folder) == folder
    assert config_file(folder) == folder / "state.json"
    assert load_config(folder) == config
    assert find_tokenizer(folder) == tmp_path / "run" / "tokenizer"


def test_config_wins_when_a_state_lies_beside_it(tmp_path: Path) -> None:
    folder = _model_folder(tmp_path / "model")
    (folder / "state.json").write_text("{}")
    assert config_file(folder) == folder / "config.json"
    assert find_tokenizer(folder) == folder


@pytest.mark.parametrize("state", [{}, {"config": None}, {"config": {"model": 5}}, {"config": []}])
def test_checkpoint_is_refused_when_it_lacks_its_recipe(state: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint '.*step-00000007' lacks its recipe") as caught:
        load_config(_checkpoint(tmp_path, state))
    assert caught.value.hint == "give another checkpoint"


def test_checkpoint_is_refused_when_its_recipe_lacks_a_key(tmp_path: Path) -> None:
    model = tiny_config().model_dump(mode="json")
    del model["hidden_size"]
    with pytest.raises(ConfigError, match=r"state\.json: 'hidden_size' is missing") as caught:
        load_config(_checkpoint(tmp_path, {"config": {"model": model}}))
    assert caught.value.hint == "give another checkpoint"


@pytest.mark.parametrize("name", ["./absent/model", "/absent/model", "~/model", "absent", "a/b/c"])
def test_name_is_refused_when_it_is_neither_folder_nor_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError, match=f"no model folder at '{name}'") as caught:
        find_model(name)
    assert caught.value.hint == "give a folder with config.json, or a hub id such as owner/name"


def test_file_is_refused_when_a_folder_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no model folder at 'a/file'"):
        find_model("a/file")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "' is missing"),
        (b"{", "cannot read '"),
        (b"\xff", "cannot read '"),
        (b"[1]", "holds no JSON object"),
    ],
    ids=["absent", "cut short", "no text", "a list"],
)
def test_json_is_refused_when_it_is(content: bytes | None, text: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_json(tmp_path / "config.json")
    assert text in caught.value.text
    assert "config.json" in caught.value.text
    assert caught.value.hint


def test_model_is_found_in_the_home_folder_when_its_name_begins_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert find_model("~/mine") == tmp_path / "mine"
