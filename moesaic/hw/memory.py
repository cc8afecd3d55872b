"""How much memory this process may take, and how much it holds."""

from collections.abc import Iterator
from pathlib import Path

import psutil

# Code and constants of libraries that come to be mapped: torch's, of which a model touches about 170 MiB.
CODE_BYTES = 256 * 2**20
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_OWN_STATUS = Path("/proc/self/status")


def available_bytes() -> int:
    """Return the bytes that can be taken without swapping: what is free, or the limit of a control group if less."""
    return min([psutil.virtual_memory().available, *_group_limits()])


def limit_bytes() -> int:
    """Return the most that this process may ever hold: the machine's memory, or the limit of a control group if less.

    A group is charged with the code of libraries too, which `held_bytes` leaves out: that is taken off its limit.
    """
    return min([psutil.virtual_memory().total, *(limit - CODE_BYTES for limit in _group_limits())])


def _group_limits() -> Iterator[int]:
    """Yield the limits on this process's control groups, of the second version and of the first.

    In a container the group's own path is often not there, and its limit stands at the root.
    """
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            files = [_GROUPS / path.lstrip("/") / "memory.max", _GROUPS / "memory.max"]
        elif controllers == "memory":
            root = _GROUPS / "memory"
            files = [folder / "memory.limit_in_bytes" for folder in (root / path.lstrip("/"), root)]
        else:
            continue
        texts = [file.read_text().strip() for file in files if file.is_file()]
        yield from (int(text) for text in texts if text.isdigit())


def held_bytes() -> int:
    """Return the bytes that this process holds: all but the code and other parts of files that are mapped."""
    lines = _OWN_STATUS.read_text().splitlines() if _OWN_STATUS.is_file() else []
    sizes = dict(line.split(":", 1) for line in lines)
    if "RssAnon" not in sizes:  # not Linux
        return int(psutil.Process().memory_info().rss)
    # 'RssAnon:     1234 kB'
    return sum(1024 * int(sizes[name].split()[0]) for name in ("RssAnon", "RssShmem", "VmSwap"))
