"""Sizes, counts and times as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.errors import ConfigError
from moesaic.units import format_bytes, format_count, format_seconds, parse_bytes

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1023, "1023 B"), (1024, "1 KiB"), (14.8e9, "13.8 GiB"), (2**50, "1024 TiB")],
)
def test_size_is_written_with_a_binary_unit_when_it_is(num_bytes: float, text: str) -> None:
    assert format_bytes(num_bytes) == text


@given(num_bytes=st.integers(1, 2**49))
def test_size_is_within_rounding_when_written(num_bytes: int) -> None:
    number, unit = format_bytes(num_bytes).split()
    assert float(number) * UNITS[unit] == pytest.approx(num_bytes, rel=0.006, abs=1)


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


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [
        ("4GiB", 2**32),
        ("500MB", 500_000_000),
        ("1.5G", 3 * 2**29),
        (" 3 kb ", 3000),
        ("1TiB", 2**40),
        ("17", 17),
        (17, 17),
        ("0.5k", 512),
    ],
)
def test_size_is_read_when_written_as_people_do(size: str | int, num_bytes: int) -> None:
    assert parse_bytes(size) == num_bytes


@pytest.mark.parametrize("size", ["", "much", "-1GiB", "0", 0, "4 apples", "4GiB free", "1e9", "0.1b", True, None])
def test_size_is_refused_when_it_is_none(size: str | int) -> None:
    with pytest.raises(ConfigError, match="disk is ") as caught:
        parse_bytes(size, "disk")
    assert "4GiB or 500MB" in caught.value.hint


@given(num_bytes=st.integers(1, 2**49))
def test_size_comes_back_within_rounding_when_written_and_read(num_bytes: int) -> None:
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.006, abs=1)
