"""The metrics file of a run: one JSON object a line, one line a step.

A row is written as a whole line and flushed, so a killed process leaves at most one torn line, the last.
Readers drop an unterminated last line that does not parse; any other broken line is an error. The file is
strict JSON, which has no NaN and no infinity: a number that is not finite is written as null.
"""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moesaic.errors import CheckpointError

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
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as failure:
        raise CheckpointError(
            f"cannot read metrics '{path}': {failure.strerror}", "give the metrics.jsonl of a run folder"
        ) from None
    # What follows the last newline: empty after a whole line, else a line whose end was never written.
    tail = lines.pop()
    rows = [_parse_line(line, path, number) for number, line in enumerate(lines, start=1)]
    try:
        return [*rows, _parse_line(tail, path, len(lines) + 1)]
    except CheckpointError:
        return rows


def truncate_after(path: str | Path, step: int) -> None:
    """Drop the rows of later steps and a torn last line, all or nothing; a missing file stays missing.

    A run that resumes from a checkpoint of `step` calls this first, so that no step is told twice.

    Raises:
        CheckpointError: the file cannot be read or written, or holds a broken line.
    """
    path = Path(path)
    if path.exists():
        _replace_rows(path, [row for row in read_metrics(path) if row["step"] <= step])


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
    """Write the rows beside the file, wait for the disk, and put the result in its place."""
    fresh = path.with_name(path.name + ".tmp")
    try:
        with fresh.open("w", encoding="ascii", newline="\n") as file:
            file.writelines(_to_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as failure:
        raise _write_error(path, failure) from None


def _line_error(path: Path, number: int, found: str) -> CheckpointError:
    return CheckpointError(f"metrics '{path}': line {number} {found}", "remove or mend that line")


def _write_error(path: Path, failure: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write metrics '{path}': {failure.strerror}",
        "check the folder, its rights and the free space",
    )
