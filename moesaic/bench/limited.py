"""A command under a memory limit that the kernel keeps, the page cache included: what a smaller machine would be.

The command joins a control group of its own (of either version) before it starts. Pages of a file are charged to the
group that first touched them, and whoever finds them cached reads for free; so files are dropped from the cache first.
"""

import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moesaic.errors import MoesaicError, UnsupportedError
from moesaic.units import format_bytes

# The shell joins the group and then becomes the command, so that not a page of it is charged elsewhere.
_JOIN = 'echo $$ > "$0" && exec "$@"'
_MOUNTS = Path("/proc/self/mounts")
_OWN_GROUPS = Path("/proc/self/cgroup")
_REMOVAL_S = 10.0


@dataclass(frozen=True)
class LimitedRun:
    """How a command went.

    Attributes:
        returncode: its exit status; negative: the signal that ended it.
        output: its standard output.
        errors: its standard error.
        peak_bytes: the most memory that it held, its page cache included.
        was_killed: the kernel ended a process of it for want of memory.
    """

    returncode: int
    output: str
    errors: str
    peak_bytes: int
    was_killed: bool


@dataclass(frozen=True)
class _Version:
    """The files of a control group.

    Attributes:
        limit: the most memory, in bytes.
        swap: file and content that leave nothing to swap; {limit} stands for the bytes. Absent without swap accounting.
        peak: the most memory held so far.
        events: holds a line 'oom_kill COUNT'.
    """

    limit: str
    swap: tuple[str, str]
    peak: str
    events: str


_FIRST = _Version(
    "memory.limit_in_bytes",
    ("memory.memsw.limit_in_bytes", "{limit}"),
    "memory.max_usage_in_bytes",
    "memory.oom_control",
)
_SECOND = _Version("memory.max", ("memory.swap.max", "0"), "memory.peak", "memory.events")


def run_limited(
    command: Sequence[str | Path],
    limit_bytes: int,
    text: str = "",
    cold: Sequence[Path] = (),
    timeout_s: float | None = None,
) -> LimitedRun:
    """Run a command to its end with so much memory, page cache included, and no swap.

    Args:
        command: the program and its arguments.
        limit_bytes: rounded down to whole pages by the kernel.
        text: its standard input.
        cold: files and folders that are dropped from the page cache before.
        timeout_s: after so long the command and all that it started are killed.

    Raises:
        UnsupportedError: no control group can be made here.
        MoesaicError: the command took longer than `timeout_s`.
    """
    drop_cached(cold)
    with _group(limit_bytes) as (group, version):
        members = str(group / "cgroup.procs")
        process = subprocess.Popen(
            ["/bin/sh", "-c", _JOIN, members, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, errors = process.communicate(text, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise MoesaicError(
                f"'{command[0]}' took longer than {timeout_s:g} s under {format_bytes(limit_bytes)}",
                "give it more time or more memory",
            ) from None
        finally:
            _kill(group)
            process.communicate()
        peak_bytes = int((group / version.peak).read_text())
        was_killed = _count_kills((group / version.events).read_text()) > 0
    return LimitedRun(process.returncode, output, errors, peak_bytes, was_killed)


def drop_cached(paths: Sequence[Path]) -> None:
    """Drop files, and all files in folders, from the page cache, as far as no process maps them; writes them first."""
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if not file.is_file():
                continue
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages that wait to be written stay
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


@contextmanager
def _group(limit_bytes: int) -> Iterator[tuple[Path, _Version]]:
    """Make a group within the limit and remove it."""
    group, version = _make_group()
    try:
        (group / version.limit).write_text(str(limit_bytes))
        swap_file, swap_text = version.swap
        if (group / swap_file).exists():
            (group / swap_file).write_text(swap_text.format(limit=limit_bytes))
        yield group, version
    finally:
        _remove(group)


def _make_group() -> tuple[Path, _Version]:
    refusals = []
    for parent, version in _parents():
        group = parent / f"moesaic-{uuid.uuid4().hex[:12]}"
        try:
            if version is _SECOND and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
                (parent / "cgroup.subtree_control").write_text("+memory")
            group.mkdir()
            if (group / version.limit).exists() and (group / version.peak).exists():
                return group, version
            group.rmdir()
            refusals.append(f"'{parent}' has no {version.limit} and {version.peak}")
        except OSError as failure:
            refusals.append(f"'{parent}': {failure.strerror}")
    raise UnsupportedError(
        f"cannot make a control group with a memory limit: {'; '.join(refusals) or 'none is mounted'}",
        "run as root, or within `systemd-run --user --scope -p Delegate=yes`",
    )


def _parents() -> list[tuple[Path, _Version]]:
    """List the groups in which one may be made, on each mount: our own, and the outermost that can be seen."""
    own = dict(line.split(":", 2)[1:] for line in _OWN_GROUPS.read_text().splitlines()) if _OWN_GROUPS.exists() else {}
    mounts = [line.split() for line in _MOUNTS.read_text().splitlines()] if _MOUNTS.exists() else []
    found = []
    for _, place, kind, options, *_ in mounts:
        if kind == "cgroup" and "memory" in options.split(","):
            version, path = _FIRST, next((own[names] for names in own if "memory" in names.split(",")), "/")
        elif kind == "cgroup2":
            version, path = _SECOND, own.get("", "/")
        else:
            continue
        # In a container our own group's path is often not there.
        places = dict.fromkeys((Path(place) / path.lstrip("/"), Path(place)))
        found += [(parent, version) for parent in places if parent.is_dir()]
    return found


def _count_kills(events: str) -> int:
    counts = dict(line.split() for line in events.splitlines())
    return int(counts.get("oom_kill", 0))


def _kill(group: Path) -> None:
    """Kill whatever the command left behind."""
    for process_id in (group / "cgroup.procs").read_text().split():
        try:
            os.kill(int(process_id), 9)
        except ProcessLookupError:
            continue


def _remove(group: Path) -> None:
    """Remove a group; a process that was killed stays in it for a moment."""
    deadline = time.monotonic() + _REMOVAL_S
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
