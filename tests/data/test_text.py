import os
import time
from pathlib import Path

import pytest

from moesaic.data.text import FolderSource, TextFileSource, hash_file, open_python_stdlib
from moesaic.errors import DataError


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def names(source: FolderSource) -> list[str]:
    return [document.name for document in source.documents()]


def test_file_is_one_document_when_it_has_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é\r\n".encode())
    source = TextFileSource("given", tmp_path / "a.txt")
    (document,) = source.documents()
    assert (document.name, document.text, document.num_bytes, source.num_bytes) == ("a.txt", "é\r\n", 4, 4)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf"])
def test_file_raises_when_it_is_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt' is empty"):
        list(TextFileSource("given", tmp_path / "a.txt").documents())


def test_folder_gives_matching_files_in_order_when_it_is_nested(tmp_path: Path) -> None:
    files = [
        "b.py",
        "a.py",
        "a/z.py",
        "a.b/c.py",
        ".hidden/d.py",
        "__pycache__/e.py",
        ".f.py",
        "g.txt",
        "skip/h.py",
    ]
    source = FolderSource("x", write(tmp_path, dict.fromkeys(files, "text")), ["*.py"], {"skip"})
    assert names(source) == ["a.b/c.py", "a.py", "a/z.py", "b.py"]
    assert source.num_bytes == 16


def test_folder_matches_relative_paths_when_a_pattern_has_a_slash(tmp_path: Path) -> None:
    write(tmp_path, {"docs/a.md": "text", "a.md": "text"})
    assert names(FolderSource("x", tmp_path, ["docs/*"])) == ["docs/a.md"]


def test_folder_passes_over_empty_files_when_others_have_text(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "", "b.py": "text"})
    assert names(FolderSource("x", tmp_path, ["*.py"])) == ["b.py"]


def test_folder_passes_over_what_is_no_regular_file_when_its_name_matches(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": "text"})
    (tmp_path / "broken.py").symlink_to("absent.py")
    (tmp_path / "link.py").symlink_to("a.py")
    os.mkfifo(tmp_path / "pipe.py")
    assert names(FolderSource("x", tmp_path, ["*.py"])) == ["a.py", "link.py"]


def test_folder_raises_with_the_patterns_when_no_file_matches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no file that matches \*\.py, \*\.md") as caught:
        FolderSource("x", tmp_path, ["*.py", "*.md"])
    assert "data.include" in caught.value.hint


def test_folder_raises_when_all_files_are_empty(tmp_path: Path) -> None:
    source = FolderSource("x", write(tmp_path, {"a.py": "", "b.py": "\n"}), ["*.py"])
    with pytest.raises(DataError, match=r"all 2 files of folder '.*' are empty"):
        list(source.documents())


def test_folder_raises_with_the_file_when_one_is_binary(tmp_path: Path) -> None:
    source = FolderSource("x", write(tmp_path, {"a.py": "text", "b.py": "a\0"}), ["*.py"])
    with pytest.raises(DataError, match=r"b\.py' is binary"):
        list(source.documents())


def test_fingerprint_stays_when_the_folder_moves(tmp_path: Path) -> None:
    write(tmp_path, {"one/a.py": "text", "two/a.py": "text"})
    one, two = (FolderSource(name, tmp_path / name, ["*.py"]) for name in ("one", "two"))
    assert one.fingerprint() == two.fingerprint()


@pytest.mark.parametrize("change", [{"a.py": "TEXT"}, {"c.py": "text"}])
def test_fingerprint_changes_when_a_file_does(tmp_path: Path, change: dict[str, str]) -> None:
    before = FolderSource("x", write(tmp_path, {"a.py": "text"}), ["*.py"]).fingerprint()
    assert FolderSource("x", write(tmp_path, change), ["*.py"]).fingerprint() != before


def test_fingerprint_is_the_one_that_stored_tokens_are_known_by_when_files_are_text(tmp_path: Path) -> None:
    source = FolderSource("x", write(tmp_path, {"a.py": "text", "b/c.py": "more"}), ["*.py"])
    assert source.fingerprint() == {
        "kind": "folder",
        "files": 2,
        "bytes": 8,
        "sha256": "41f4e2d318ec458008c670472de2a29db384a0a1627783bf4a1c65695d1172ff",
    }


def test_fingerprint_changes_when_a_file_gets_another_name(tmp_path: Path) -> None:
    before = FolderSource("x", write(tmp_path, {"a.py": "text"}), ["*.py"]).fingerprint()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert FolderSource("x", tmp_path, ["*.py"]).fingerprint() != before


def test_fingerprint_of_a_file_changes_when_its_content_does(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("text")
    before = TextFileSource("x", file).fingerprint()
    file.write_text("TEXT")
    os.utime(file, ns=(0, time.time_ns() + 10**9))  # coarse clocks
    assert TextFileSource("x", file).fingerprint() != before


def test_hash_raises_when_the_file_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*gone'"):
        hash_file(tmp_path / "gone")


def test_python_stdlib_is_readable_code_when_opened() -> None:
    source = open_python_stdlib()
    documents = {document.name: document.text for document in source.documents()}
    assert "class JSONDecoder" in documents["json/decoder.py"]
    assert len(documents) > 300
    assert not any("site-packages" in name or "/test" in name for name in documents)
    assert list(documents) == sorted(documents)
