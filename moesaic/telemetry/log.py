"""Logging of entry points; libraries only call `logging.getLogger(__name__)`."""

import logging
import sys

from moesaic.errors import ConfigError, nearest_hint

LEVELS = ("debug", "info", "warning", "error")
_HANDLER_NAME = "moesaic"


class _StderrHandler(logging.StreamHandler):
    """Writes to what `sys.stderr` is at the time of the message, as redirection may change it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure_logging(level: str = "info") -> None:
    """Send log messages to standard error: in colour on a terminal, as plain lines elsewhere.

    The level holds for moesaic's own messages; other libraries are heard from 'warning' on. Calling it again
    replaces what the last call set up.

    Args:
        level: one of `LEVELS`, in upper or lower case.

    Raises:
        ConfigError: the level is unknown.
    """
    if level.lower() not in LEVELS:
        raise ConfigError(f"unknown log level '{level}'", nearest_hint(level.lower(), LEVELS))
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if handler.get_name() == _HANDLER_NAME]:
        root.removeHandler(handler)
    handler = _terminal_handler() if sys.stderr.isatty() else _plain_handler()
    handler.set_name(_HANDLER_NAME)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("moesaic").setLevel(level.upper())


def _plain_handler() -> logging.Handler:
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    return handler


def _terminal_handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    # Messages are data: a path in square brackets is no markup.
    return RichHandler(console=Console(stderr=True), show_path=False, markup=False, log_time_format="%H:%M:%S")
