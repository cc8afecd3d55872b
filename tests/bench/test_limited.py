"""Memory limits: real ones where control groups can be made, and the reason where they cannot."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moesaic.bench import limited as room
from moesaic.bench.limited import LimitedRun, drop_cached, run_limited
from moesaic.errors import MoesaicError, UnsupportedError

MIB = 2**20


@pytest.fixture(scope="module")
def run() -> Callable[..., LimitedRun]:
    """Run a Python program under a limit."""
    try:
        run_limited(["true"], 64 * MIB)
    except UnsupportedError as error:
        pytest.skip(error.text)
    return lambda program, limit_mib, **options: run_limited(
        [sys.executable, "-c", program], limit_mib * MIB, **options
    )


def test_process_is_killed_when_it_takes_more_than_the_limit(run: Callable[..., LimitedRun]) -> None:
    done = run("print('before', flush=True); taken = bytearray(200 * 2**20); print('after')", 100)
    assert (done.returncode, done.output, done.was_killed) == (-9, "before\n", True)
    assert 90 * MIB < done.peak_bytes <= 100 * MIB


def test_output_status_and_peak_are_told_when_it_stays_below_the_limit(run: Callable[..., LimitedRun]) -> None:
    program = "import sys; taken = bytearray(50 * 2**20); print(input()); print('words', file=sys.stderr); sys.exit(3)"
    done = run(program, 100, text="given\n")
    assert (done.returncode, done.output, done.errors, done.was_killed) == (3, "given\n", "words\n", False)
    assert 50 * MIB < done.peak_bytes < 100 * MIB


def test_page_cache_counts_when_a_cold_file_is_read(run: Callable[..., LimitedRun], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(60 * MIB))
    read = f"file = open('{tmp_path}/file', 'rb')\nwhile file.read(2**20): pass"
    ample, scarce = (run(read, limit, cold=[tmp_path]) for limit in (200, 40))
    assert ample.peak_bytes > 60 * MIB
    assert 30 * MIB < scarce.peak_bytes <= 40 * MIB
    assert not scarce.was_killed


def test_command_and_its_children_end_when_the_time_is_over(run: Callable[..., LimitedRun]) -> None:
    with pytest.raises(MoesaicError, match=r"took longer than 0\.5 s under 100 MiB"):
        run("import subprocess; subprocess.run(['sleep', '60'])", 100, timeout_s=0.5)


def test_no_group_is_left_when_a_command_has_ended(run: Callable[..., LimitedRun]) -> None:
    run("pass", 100)
    assert not [group for parent, _ in room._parents() for group in parent.glob("moesaic-*")]


def test_reasons_are_told_when_no_group_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (tmp_path / "mounts").write_text(
        f"cgroup {first} cgroup rw,memory 0 0\ncgroup2 {second} cgroup2 rw 0 0\nproc /proc proc rw 0 0\n"
    )
    monkeypatch.setattr(room, "_MOUNTS", tmp_path / "mounts")
    expected = f"'{first}' has no memory.limit_in_bytes and memory.max_usage_in_bytes; '{second}': No such file"
    with pytest.raises(UnsupportedError, match="cannot make a control group") as raised:
        run_limited(["true"], MIB)
    assert expected in raised.value.text
    assert not list(first.iterdir())


def test_nothing_is_mounted_when_the_system_has_no_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOUNTS", tmp_path / "absent")
    with pytest.raises(UnsupportedError, match="none is mounted"):
        run_limited(["true"], MIB)


def test_own_group_comes_before_the_outermost_when_both_can_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner" / "own").mkdir(parents=True)
    (tmp_path / "mounts").write_text(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    (tmp_path / "groups").write_text("4:cpu,memory:/elsewhere\n0::/inner/own\n")
    monkeypatch.setattr(room, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(room, "_OWN_GROUPS", tmp_path / "groups")
    assert [parent for parent, _ in room._parents()] == [tmp_path / "inner" / "own", tmp_path]


def test_kills_are_counted_when_the_kernel_tells_them() -> None:
    assert room._count_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n") == 2
    assert room._count_kills("low 0\noom 1\n") == 0


def test_content_stays_when_a_file_is_dropped_from_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    drop_cached([tmp_path, tmp_path / "absent"])
    assert (tmp_path / "file").read_bytes() == b"content"
