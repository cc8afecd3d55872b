"""The metrics file of a run: one JSON object a line, one line a step.

A row is written as a whole line and handed to the operating system, so a killed process leaves at most one torn
line, the last. Readers drop an unterminated last line that does not parse; any other broken line is an error. A power
cut takes also the rows since the last `sync`: with one before each checkpoint, those that a checkpoint has behind it
are there. The file is strict JSON, which has no NaN and no infinity: a number that is not finite is written as null.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moesaic.errors import CheckpointError
from moesaic.flush import flush, replace_text

Row = dict[str, Any]


class MetricsFile:
    """Appends rows to a metrics file; a context manager.

    Opening a file that ends in a torn line removes that line, so that the next row starts on its own.

    Args:
        path: the file, made if it is missing; its folder must exist.

    Raises:
        CheckpointError: the file cannot be written, or an earlier line is broken.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if _has_open_line(self.path):
            _replace_rows(self.path, read_metrics(self.path))
        try:
            self._file = self.path.open("a", encoding="ascii", buffering=1, newline="\n")
        except OSError as failure:
            raise _write_error(self.path, failure) from None

    def append(self, row: Row) -> None:
        """Write one row and hand it to the operating system, without waiting for the disk.

        Args:
            row: plain data with a whole number under 'step'; numbers that are not finite become null.

        Raises:
            CheckpointError: the write failed, as on a full disk.
        """
        assert type(row.get("step")) is int, f"a row needs a whole 'step', found {row.get('step')!r}"
        try:
            self._file.write(_to_line(row))
            self._file.flush()
        except OSError as failure:
            raise _write_error(self.path, failure) from None

    def sync(self) -> None:
        """Wait until every appended row is on the disk, and the file's name too.

        Called before a checkpoint is saved, so that no power cut leaves a checkpoint without its rows.

        Raises:
            CheckpointError: the disk did not take them.
        """
        try:
            self._file.flush()
            flush(self.path)
            flush(self.path.parent)
        except OSError as failure:
            raise _write_error(self.path, failure) from None

    def close(self) -> None:
        """Close the file; further rows cannot be appended."""
        # Rows are flushed one by one: what is left here is the row whose failure was already told.
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[Row]:
    """Return the rows of a metrics file in order, without a torn last line.

    Raises:
        CheckpointError: the file cannot be read, or a line other than a torn last one is no JSON object
            with a whole number under 'step'.
    """
    return list(_iterate_rows(Path(path)))


def truncate_after(path: str | Path, step: int) -> None:
    """Drop what follows the row of a step, whole or broken, all or nothing; a missing file stays missing.

    A run that resumes from a checkpoint of `step` calls this first, so that no step is told twice and none is left
    out. The first row need not be of step 1: a run that began with another one's checkpoint has only its own rows,
    and before its first one there are none.

    Raises:
        CheckpointError: the file cannot be read or written, or between its first row and that of `step` a line is
            broken or a row is missing.
    """
    path = Path(path)
    if path.exists():
        kept = _rows_until(path, step)
        _check_no_hole(path, kept, step)
        _replace_rows(path, kept)


def _iterate_rows(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as failure:
        raise CheckpointError(
            f"cannot read metrics '{path}': {failure.strerror}", "give the metrics.jsonl of a run folder"
        ) from None
    # What follows the last newline: empty after a whole line, else a line whose end was never written.
    tail = lines.pop()
    for number, line in enumerate(lines, start=1):
        yield _parse_line(line, path, number)
    with suppress(CheckpointError):
        yield _parse_line(tail, path, len(lines) + 1)


def _rows_until(path: Path, step: int) -> list[Row]:
    """Read as far as the row of a step; what a crash did to later ones is no matter."""
    kept: list[Row] = []
    last, rows = 0, _iterate_rows(path)
    while last < step and (row := next(rows, None)) is not None:
        last = row["step"]
        if last <= step:
            kept.append(row)
    return kept


def _check_no_hole(path: Path, rows: list[Row], step: int) -> None:
    found = {row["step"] for row in rows}
    missing = sorted(set(range(min(found, default=step + 1), step + 1)) - found)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CheckpointError(
            f"metrics '{path}' have no row of step {missing[0]}{more}, though the checkpoint is of step {step}",
            "resume from an earlier checkpoint, or move that file away to go on without the earlier rows",
        )


def _to_line(row: Row) -> str:
    return json.dumps(_finite(row), allow_nan=False, separators=(", ", ": ")) + "\n"


def _finite(value: Any) -> Any:
    """Return plain data with null in place of each number that JSON cannot write."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse_line(line: bytes, path: Path, number: int) -> Row:
    try:
        row = json.loads(line, parse_constant=_refuse_constant)
    except ValueError:  # also what undecodable bytes raise
        raise _line_error(path, number, "is no JSON") from None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise _line_error(path, number, "is no object with a whole number under 'step'")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _has_open_line(path: Path) -> bool:
    """Tell whether a file exists and its last line lacks a newline."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _replace_rows(path: Path, rows: list[Row]) -> None:
    try:
        replace_text(path, "".join(_to_line(row) for row in rows))
    except OSError as failure:
        raise _write_error(path, failure) from None


def _line_error(path: Path, number: int, found: str) -> CheckpointError:
    return CheckpointError(f"metrics '{path}': line {number} {found}", "remove or mend that line")


def _write_error(path: Path, failure: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write metrics '{path}': {failure.strerror}",
        "check the folder, its rights and the free space",
    )
