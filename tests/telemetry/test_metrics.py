"""The metrics file survives a killed writer and refuses what it cannot explain."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesaic.errors import CheckpointError
from moesaic.telemetry.metrics import MetricsFile, read_metrics, truncate_after


def write_rows(path, rows):
    with MetricsFile(path) as file:
        for row in rows:
            file.append(row)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_rows_read_back_as_they_were_written(path):
    rows = [{"step": 1, "loss": 0.1 + 0.2, "expert_load": {"layers": {"0": [0.25, 0.75]}}}, {"step": 2}]
    write_rows(path, rows)
    assert read_metrics(path) == rows


def test_opening_again_appends(path):
    write_rows(path, [{"step": 1}])
    write_rows(path, [{"step": 2}])
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_row_is_readable_before_the_file_is_closed(path):
    with MetricsFile(path) as file:
        file.append({"step": 1})
        assert read_metrics(path) == [{"step": 1}]


def test_killed_writer_leaves_every_appended_row(path):
    program = (
        "import os, sys\n"
        "from moesaic.telemetry.metrics import MetricsFile\n"
        "file = MetricsFile(sys.argv[1])\n"
        "for step in range(1, 6):\n"
        "    file.append({'step': step})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_number_that_is_not_finite_becomes_null_at_any_depth(path, value):
    write_rows(path, [{"step": 1, "loss": value, "expert_load": {"layers": {"0": [value, 1.0]}}}])
    assert "NaN" not in path.read_text()
    assert read_metrics(path) == [{"step": 1, "loss": None, "expert_load": {"layers": {"0": [None, 1.0]}}}]


def test_row_without_a_step_is_our_own_mistake(path):
    with MetricsFile(path) as file, pytest.raises(AssertionError, match="whole 'step'"):
        file.append({"loss": 1.0})


def test_torn_last_line_is_dropped_on_reading(path):
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_torn_line_of_undecodable_bytes_is_dropped_on_reading(path):
    path.write_bytes(b'{"step": 1}\n\xff\x00')
    assert read_metrics(path) == [{"step": 1}]


def test_last_line_that_lacks_only_its_newline_is_kept(path):
    path.write_text('{"step": 1}\n{"step": 2}')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


@pytest.mark.parametrize(("tail", "steps"), [("", [1, 3]), ('{"step": 2, "lo', [1, 3]), ('{"step": 2}', [1, 2, 3])])
def test_append_starts_its_own_line_whatever_the_last_writer_left(path, tail, steps):
    path.write_text('{"step": 1}\n' + tail)
    write_rows(path, [{"step": 3}])
    assert [row["step"] for row in read_metrics(path)] == steps


def test_empty_file_has_no_rows(path):
    path.touch()
    assert read_metrics(path) == []


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ('{"step": 2, "lo', "is no JSON"),
        ("", "is no JSON"),
        ('{"step": 2, "loss": NaN}', "is no JSON"),
        ("[1, 2]", "is no object with a whole number under 'step'"),
        ('{"loss": 1.0}', "is no object with a whole number under 'step'"),
        ('{"step": true}', "is no object with a whole number under 'step'"),
    ],
)
def test_broken_line_elsewhere_is_an_error_that_names_file_and_line(path, broken, found):
    path.write_text('{"step": 1}\n' + broken + '\n{"step": 3}\n')
    with pytest.raises(CheckpointError) as caught:
        read_metrics(path)
    assert caught.value.text == f"metrics '{path}': line 2 {found}"


def test_broken_last_line_with_a_newline_is_an_error_as_no_killed_writer_leaves_one(path):
    path.write_text('{"step": 1}\n{"ste\n')
    with pytest.raises(CheckpointError, match="line 2"):
        read_metrics(path)


def test_missing_file_is_an_error_on_reading(path):
    with pytest.raises(CheckpointError, match=r"cannot read metrics .*No such file") as caught:
        read_metrics(path)
    assert "run folder" in caught.value.hint


def test_file_in_a_missing_folder_cannot_be_opened(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot write metrics .*No such file"):
        MetricsFile(tmp_path / "nowhere" / "metrics.jsonl")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_is_an_error_on_appending():
    file = MetricsFile("/dev/full")
    with pytest.raises(CheckpointError, match="No space left"):
        file.append({"step": 1})
    file.close()  # tells the failure no second time


def test_truncation_drops_later_steps_and_the_torn_line(path):
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    truncate_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_truncation_minds_no_broken_line_after_the_step(path):
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n\0\0\0\n{"step": 4}\n')
    truncate_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_bytes(b"\0\0\0\n")
    truncate_after(path, 0)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("steps", "missing"),
    [([1, 2, 4, 5], "step 3"), ([1, 2], r"step 3 \(and 2 more\)"), ([3, 5], "step 4"), ([1, 2, 9], r"step 3 \(")],
)
def test_truncation_refuses_a_hole_before_the_step_and_changes_nothing(path, steps, missing):
    write_rows(path, [{"step": step} for step in steps])
    before = path.read_bytes()
    with pytest.raises(
        CheckpointError, match=rf"have no row of {missing}.*though the checkpoint is of step 5"
    ) as caught:
        truncate_after(path, 5)
    assert "earlier checkpoint" in caught.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("steps", [[], [4, 5, 6], [6, 7], [3, 4, 5]])
def test_truncation_asks_for_no_row_before_the_first(path, steps):
    write_rows(path, [{"step": step} for step in steps])
    truncate_after(path, 5)
    assert [row["step"] for row in read_metrics(path)] == [step for step in steps if step <= 5]


def test_sync_waits_until_the_file_and_its_name_are_on_the_disk(path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    with MetricsFile(path) as file:
        file.append({"step": 1})
        assert flushed == []
        file.sync()
    assert flushed == [path.stat().st_ino, path.parent.stat().st_ino]


def test_sync_is_an_error_when_the_disk_does_not_take_the_rows(path, monkeypatch):
    def refuse(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with MetricsFile(path) as file, pytest.raises(CheckpointError, match=r"cannot write metrics .*Input/output error"):
        file.sync()


def test_truncation_of_a_missing_file_leaves_it_missing(path):
    truncate_after(path, 2)
    assert not path.exists()


def test_truncation_of_a_broken_file_changes_nothing(path):
    path.write_text('broken\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match="line 1"):
        truncate_after(path, 1)
    assert path.read_text() == 'broken\n{"step": 2}\n'


def test_failed_truncation_keeps_the_old_file(path, monkeypatch):
    write_rows(path, [{"step": 1}, {"step": 2}])

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        truncate_after(path, 1)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
extras = st.dictionaries(st.text(max_size=4).filter(lambda key: key != "step"), values, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(extras, max_size=8), st.integers(0, 8), st.binary(max_size=6))
def test_truncate_then_append_equals_never_having_written_more(path, all_extras, kept, tail):
    rows = [{"step": step, **extra} for step, extra in enumerate(all_extras, start=1)]
    path.unlink(missing_ok=True)
    write_rows(path, rows)
    straight = path.read_bytes()

    with path.open("ab") as file:
        file.write(b'{"st' + tail.replace(b"\n", b" "))
    kept = min(kept, len(rows))
    truncate_after(path, kept)
    write_rows(path, rows[kept:])
    assert path.read_bytes() == straight


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(extras, min_size=1, max_size=5), st.data())
def test_file_cut_at_any_byte_reads_as_its_whole_rows(path, all_extras, data):
    rows = [{"step": step, **extra} for step, extra in enumerate(all_extras, start=1)]
    path.unlink(missing_ok=True)
    write_rows(path, rows)
    written, told = path.read_bytes(), read_metrics(path)
    cut = data.draw(st.integers(0, len(written)))
    path.write_bytes(written[:cut])
    lengths = [len(line) for line in written.splitlines(keepends=True)]
    whole = sum(sum(lengths[: index + 1]) - 1 <= cut for index in range(len(lengths)))
    assert read_metrics(path) == told[:whole]
    assert all(json.dumps(row) for row in told)
