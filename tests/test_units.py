"""Sizes, counts and times as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import ConfigError
from moesaic.units import format_bytes, format_count, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4GiB", 4 * 2**30),
        ("500MB", 500 * 10**6),
        (" 1.5 gb ", 1_500_000_000),
        (".5KiB", 512),
        ("7b", 7),
        ("1TiB", 2**40),
    ],
)
def test_size_is_read_when_written_as(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "4", "GiB", "0GB", "-1GB", "4 GiBs", "4,5GB", "1e3MB", "4XB", "٤GB"])
def test_size_is_refused_when_written_as(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot read '.*' as a size in bytes") as caught:
        parse_bytes(text)
    assert caught.value.hint == "write a number and a unit, such as 4GiB or 500MB"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1023, "1023 B"), (1024, "1 KiB"), (14.8e9, "13.8 GiB"), (2**50, "1024 TiB")],
)
def test_size_is_written_with_a_binary_unit_when_it_is(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(num_bytes=st.integers(1, 2**49))
def test_size_comes_back_within_rounding_when_written_and_read(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.006, abs=1)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1K"), (29.4e6, "29.4M"), (6.92e9, "6.92B"), (2e12, "2T")]
)
def test_count_is_written_with_a_suffix_when_it_is(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.85, "850 ms"), (1, "1 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_time_is_written_in_its_unit_when_it_is(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
