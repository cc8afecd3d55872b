from pathlib import Path

import pytest

from moesaic.data.document import decode_text, read_file, read_lines
from moesaic.errors import DataError

PATH = Path("some/file.txt")


def test_text_loses_only_its_byte_order_mark_when_it_has_one() -> None:
    assert decode_text(b"\xef\xbb\xbfa\r\nb\n", PATH) == "a\r\nb\n"


def test_text_raises_with_the_byte_when_it_is_binary() -> None:
    with pytest.raises(DataError, match=r"'some/file\.txt' is binary: byte 2 is NUL") as caught:
        decode_text(b"ab\0c", PATH)
    assert "data.include" in caught.value.hint


@pytest.mark.parametrize(("content", "place"), [(b"ab\xe9c", 2), (b"\xef\xbb\xbfab\xe9c", 5)])
def test_text_raises_with_the_byte_when_it_is_not_utf8(content: bytes, place: int) -> None:
    with pytest.raises(DataError, match=rf"'some/file\.txt' is not UTF-8: byte {place} is 0xe9") as caught:
        decode_text(content, PATH)
    assert "iconv" in caught.value.hint


@pytest.mark.parametrize("read_fn", [read_file, lambda path: list(read_lines(path))])
def test_file_raises_when_it_cannot_be_read(read_fn, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*gone': No such file") as caught:
        read_fn(tmp_path / "gone")
    assert "permissions" in caught.value.hint
