"""Finding a model: a folder, a run folder or a hub id, and what is told where there is none."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from moesaic.checkpoint.folder import find_model, read_json
from moesaic.errors import CheckpointError


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


def test_run_folder_is_refused_when_it_holds_no_finished_model(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(CheckpointError, match=r"run folder '.*' holds no finished model") as caught:
        find_model(tmp_path)
    assert caught.value.hint == "let `moesaic train` finish, or give a checkpoint"


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


def test_hub_id_is_fetched_without_pickles_when_no_such_folder_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(repo_id: str, **options: Any) -> str:
        calls.append((repo_id, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("owner/name") == tmp_path
    assert calls == [("owner/name", {"allow_patterns": ["*.json", "*.safetensors", "*.jinja"]})]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (LocalEntryNotFoundError("cannot reach the hub\nmore"), "cannot reach the hub"),
        (OSError("disk"), "disk"),
        (OSError(), "OSError"),
    ],
)
def test_hub_id_is_refused_in_one_line_when_the_hub_fails(
    failure: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo_id: str, **options: Any) -> str:
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError) as caught:
        find_model("owner/name")
    assert caught.value.text == f"no folder 'owner/name' here, and the hub does not give it: {reason}"
    assert caught.value.hint == "check the name and the connection"


@pytest.mark.parametrize("name", ["owner/name", "owner/no such name!"])
def test_hub_id_is_refused_when_the_real_client_is_offline(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"no folder '{name}' here, and the hub does not give it: "):
        find_model(name)


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
