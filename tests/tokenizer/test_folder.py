from pathlib import Path

import pytest

from moesaic.errors import DataError
from moesaic.tokenizer.folder import read_tokenizer_files


def test_folder_gives_every_file_when_all_are_there(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"a": 1}')
    (tmp_path / "special_tokens_map.json").write_text('{"b": 2}')
    (tmp_path / "generation_config.json").write_text('{"c": 3}')
    (tmp_path / "chat_template.jinja").write_text("template")
    files = read_tokenizer_files(tmp_path)
    assert (files.content, files.settings, files.token_map) == ("{}", {"a": 1}, {"b": 2})
    assert (files.generation, files.template) == ({"c": 3}, "template")
    assert read_tokenizer_files(tmp_path / "tokenizer.json") == files


def test_folder_gives_empty_settings_when_tokenizer_json_is_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    files = read_tokenizer_files(tmp_path)
    assert (files.settings, files.token_map, files.generation, files.template) == ({}, {}, {}, None)


def test_folder_raises_when_the_path_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer at '.*absent\.json'") as caught:
        read_tokenizer_files(tmp_path / "absent.json")
    assert "tokenizer.json" in caught.value.hint


def test_folder_raises_when_it_holds_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder '.*' holds no tokenizer\.json") as caught:
        read_tokenizer_files(tmp_path)
    assert "token ids" in caught.value.hint


def test_folder_raises_with_a_way_to_convert_when_only_a_slow_tokenizer_is_there(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00")
    with pytest.raises(DataError, match=r"holds a tokenizer as tokenizer\.model, which is not read") as caught:
        read_tokenizer_files(tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_folder_raises_when_settings_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{,}")
    with pytest.raises(DataError, match=r"tokenizer_config\.json' is no valid JSON: .*line 1"):
        read_tokenizer_files(tmp_path)


def test_folder_raises_when_settings_are_no_object(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(DataError, match=r"generation_config\.json' is of type list; accepted is an object"):
        read_tokenizer_files(tmp_path)


def test_folder_raises_when_a_file_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot read '.*tokenizer\.json': .*0xff"):
        read_tokenizer_files(tmp_path)
