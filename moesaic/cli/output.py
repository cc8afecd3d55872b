"""What commands print: results on standard output, everything else on standard error."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moesaic.errors import EXIT_OURS, EXIT_USER, MoesaicError

if TYPE_CHECKING:
    from rich.console import Console

_OTHERS_WAIT_S = 1.0


def error_console() -> "Console":
    """Return the console for people's output and progress."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal while something is done; what is yielded is told how many of how many are."""
    from rich.progress import Progress

    console = error_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def print_json(result: dict[str, Any]) -> None:
    """Print the one machine-readable object of a command."""
    print(json.dumps(result, ensure_ascii=False, allow_nan=False))


def report_error(failure: BaseException, debug: bool) -> int:
    """Print an error as two lines, the second one what to do next; return the exit code."""
    if os.environ.get("RANK", "0") != "0":
        # What fails in every process alike is told by the first, whereupon torchrun ends the others.
        time.sleep(_OTHERS_WAIT_S)
    if debug:
        traceback.print_exception(failure)
    if isinstance(failure, MoesaicError):
        _print_two_lines(failure.text, failure.hint or "see `moesaic --help`")
        return failure.exit_code
    if isinstance(failure, OSError):
        _print_two_lines(str(failure), "check the file, its rights and the free space")
        return EXIT_USER
    if _is_out_of_memory(failure):
        _print_two_lines(
            f"out of memory: {failure}", "choose a smaller model, train.micro_batch_size or data.sequence_length"
        )
        return EXIT_USER
    _print_two_lines(
        f"internal error: {type(failure).__name__}: {failure}",
        "this is our fault; run again with --debug and report what it prints",
    )
    return EXIT_OURS


def _is_out_of_memory(failure: BaseException) -> bool:
    """Tell a failed allocation, which torch reports on the CPU as a plain RuntimeError."""
    texts = ("can't allocate memory", "out of memory")
    return isinstance(failure, MemoryError) or (
        isinstance(failure, RuntimeError) and any(text in str(failure) for text in texts)
    )


def report_usage(text: str, command: str) -> int:
    """Print a mistake in the command's own words; return the exit code."""
    _print_two_lines(text, f"see `{command} --help`")
    return EXIT_USER


def _print_two_lines(error: str, hint: str) -> None:
    error, hint = (" ".join(text.split()) for text in (error, hint))
    print(f"error: {error}\n hint: {hint}", file=sys.stderr)
