"""Models of the hub: what is fetched, in which order, and what is told when it cannot be had."""

import fnmatch
import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, XetDownloadError

from moesaic.checkpoint.folder import find_model
from moesaic.errors import CheckpointError, UnsupportedError
from moesaic.models.config_json import write_config
from moesaic.testing.tiny import tiny_config

INDEX = "model.safetensors.index.json"
CONFIG = json.dumps(write_config(tiny_config(), "float32"))


class Hub:
    """One repository, as the hub's client shows it; keeps what was fetched, in order."""

    def __init__(self, cache: Path, files: dict[str, str]) -> None:
        self.folder, self.files = cache / "commit", files
        self.fetched: list[str] = []
        self.folder.mkdir()

    def snapshot_download(
        self, repo_id: str, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str] | None
    ) -> str:
        assert repo_id == "owner/name"
        # All files are of one commit, even when the repository changes meanwhile.
        assert revision == ("commit" if self.fetched else None)
        for name, content in self.files.items():
            wanted = any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns)
            if wanted and not any(fnmatch.fnmatch(name, pattern) for pattern in ignore_patterns or []):
                self.fetched.append(name)
                (self.folder / name).parent.mkdir(exist_ok=True)
                (self.folder / name).write_text(content)
        return str(self.folder)

    def list_repo_files(self, repo_id: str, revision: str) -> list[str]:
        assert (repo_id, revision) == ("owner/name", "commit")
        return list(self.files)


def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str, **contents: str) -> Hub:
    files = {"config.json": CONFIG, **dict.fromkeys(names, ""), **contents}
    hub = Hub(tmp_path, files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", hub.list_repo_files)
    return hub


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["a.safetensors", "b.safetensors", "consolidated.00.safetensors"], ["a.safetensors", "b.safetensors"]),
        (["a.safetensors", "original/a.safetensors"], ["a.safetensors"]),
    ],
)
def test_weights_come_once_and_without_pickles_when_a_repository_holds(
    names: list[str], weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _hub(tmp_path, monkeypatch, "tokenizer.json", "chat_template.jinja", *names)
    assert find_model("owner/name") == hub.folder
    assert hub.fetched == ["config.json", "tokenizer.json", "chat_template.jinja", *weights]


def test_files_of_the_index_come_alone_when_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ["model-1.safetensors", "model-2.safetensors"]
    index = json.dumps({"weight_map": {"a": shards[1], "b": shards[0], "c": shards[0]}})
    hub = _hub(tmp_path, monkeypatch, *shards, "consolidated.safetensors", "old.safetensors", **{INDEX: index})
    find_model("owner/name")
    assert hub.fetched == ["config.json", INDEX, *shards]


def test_index_is_left_alone_when_the_whole_model_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = json.dumps({"weight_map": {"a": "old.safetensors"}})
    hub = _hub(tmp_path, monkeypatch, "model.safetensors", "old.safetensors", **{INDEX: index})
    find_model("owner/name")
    assert hub.fetched == ["config.json", INDEX, "model.safetensors"]


@pytest.mark.parametrize(
    "config", [{"model_type": "gpt2"}, {**json.loads(CONFIG), "quantization_config": {"quant_method": "fp8"}}]
)
def test_no_weights_come_when_the_model_is_not_supported(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _hub(tmp_path, monkeypatch, "model.safetensors", **{"config.json": json.dumps(config)})
    with pytest.raises(UnsupportedError):
        find_model("owner/name")
    assert hub.fetched == ["config.json"]


def test_pickle_is_refused_when_a_repository_holds_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = _hub(tmp_path, monkeypatch, "README.md", "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"'owner/name' holds a pickle checkpoint \(pytorch_model\.bin\)"):
        find_model("owner/name")
    assert hub.fetched == ["config.json"]


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (LocalEntryNotFoundError("cannot reach the hub\nmore"), "cannot reach the hub"),
        (OSError("disk"), "disk"),
        (OSError(), "OSError"),
        # What a connection that breaks raises has no base in common with the others.
        (XetDownloadError("cut off"), "cut off"),
        (RuntimeError("peer closed connection"), "peer closed connection"),
    ],
)
@pytest.mark.parametrize("call", ["snapshot_download", "list_repo_files"])
def test_hub_id_is_refused_in_one_line_when_the_hub_fails(
    call: str, failure: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(repo_id: str, **options: Any) -> str:
        raise failure

    _hub(tmp_path, monkeypatch)
    monkeypatch.setattr(huggingface_hub, call, fail)
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


def test_model_is_found_offline_when_the_real_client_has_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--owner--name" / "snapshots" / commit
    folder.mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text(commit)
    (folder / "config.json").write_text(CONFIG)
    (folder / "model.safetensors").write_text("")
    assert find_model("owner/name") == folder
