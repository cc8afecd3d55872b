"""The one tree of exceptions.

An error has a text (what was being done, what was found and where, what is accepted) and a hint
(what to do next). The command line prints both as two lines; the exit code says whose fault it was.
"""

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_OURS = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130


class MoesaicError(Exception):
    """Anything that a user, a file, a request or a cluster can cause.

    Args:
        text: one line: what was being done, what was found, what is accepted.
        hint: one line: what to do next.
    """

    exit_code = EXIT_USER

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint


class ConfigError(MoesaicError):
    """A recipe, an option or an argument that cannot be met."""


class DataError(MoesaicError):
    """A data file or a tokenizer that cannot be used."""


class CheckpointError(MoesaicError):
    """A checkpoint that cannot be read or written."""


class TrainingError(MoesaicError):
    """A run that cannot go on, such as one whose loss is no longer finite."""


class ParallelError(MoesaicError):
    """A run of several processes that cannot go on, such as one that has lost a process."""


class MemoryBudgetError(MoesaicError):
    """A memory budget that cannot be met."""


class UnsupportedError(MoesaicError):
    """A model, format, dtype or machine that this version does not handle."""


class RequestError(MoesaicError):
    """A generation request that cannot be met."""


def nearest_hint(name: str, accepted: Iterable[str]) -> str:
    """Return a hint that names the nearest accepted name, or lists all of them when none is near."""
    names = sorted(accepted)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"accepted: {', '.join(names)}"
