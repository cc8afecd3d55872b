"""Sizes, counts and times as people read them."""


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
