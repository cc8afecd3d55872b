"""Sizes, counts and times as people read and write them."""

import re

from moesaic.errors import ConfigError

_SIZES = {"": 1, "b": 1} | {
    prefix + ending: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for ending, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


def parse_bytes(size: str | int, name: str = "memory") -> int:
    """Return the bytes of a size such as '4GiB', '500MB' or '1.5G'; units of 1024 have an i, or no B.

    Args:
        size: as written; a number is one of bytes.
        name: of the argument, for the error.

    Raises:
        ConfigError: it is no size, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    unit = _SIZES.get(found[2].lower()) if found else None
    num_bytes = int(float(found[1]) * unit) if found and unit else 0
    if num_bytes < 1 or isinstance(size, bool):
        raise ConfigError(f"{name} is {size!r}", "give a size above 0, such as 4GiB or 500MB")
    return num_bytes


def format_bytes(num_bytes: float) -> str:
    """Return a size with a binary unit and three significant digits, such as '13.8 GiB'."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(value) >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}" if abs(value) < 1000 else f"{value:.0f} {units[0]}"


def format_count(count: float) -> str:
    """Return a count with a decimal suffix and three significant digits, such as '29.4M'."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(count) >= size:
            return f"{count / size:.3g}{suffix}"
    return f"{count:.3g}"


def format_seconds(seconds: float) -> str:
    """Return a duration as '850 ms', '42 s', '3 min 20 s' or '2 h 05 min'."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
