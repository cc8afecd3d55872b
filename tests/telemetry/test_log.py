"""Logging is set up by entry points alone, and once."""

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.errors import ConfigError
from moesaic.telemetry.log import configure_logging


@pytest.fixture(autouse=True)
def _restored_logging():
    root, ours = logging.getLogger(), logging.getLogger("moesaic")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def test_message_goes_to_standard_error_as_one_plain_line(capsys):
    configure_logging("info")
    logging.getLogger("moesaic.train").info("saved [step 3]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(" INFO saved [step 3]\n")


def test_level_holds_for_our_messages_and_not_for_other_libraries(capsys):
    configure_logging("DEBUG")
    logging.getLogger("moesaic.memory").debug("ours")
    logging.getLogger("somebody").info("theirs")
    logging.getLogger("somebody").warning("their warning")
    assert "ours" in (told := capsys.readouterr().err)
    assert "theirs" not in told
    assert "their warning" in told


def test_message_is_told_once_when_configured_twice(capsys):
    configure_logging("info")
    configure_logging("info")
    logging.getLogger("moesaic").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_message_follows_standard_error_when_it_is_redirected_later(monkeypatch):
    configure_logging("info")
    later = io.StringIO()
    monkeypatch.setattr(sys, "stderr", later)
    logging.getLogger("moesaic").info("here")
    assert "here" in later.getvalue()


def test_message_on_a_terminal_is_no_markup(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure_logging("info")
    logging.getLogger("moesaic").info("saved [bold]")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert "INFO     saved [bold]" in plain


def test_unknown_level_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown log level 'inf0'") as caught:
        configure_logging("inf0")
    assert caught.value.hint == "did you mean 'info'?"


def test_import_changes_no_logger_and_loads_nothing_heavy():
    program = (
        "import logging, sys\n"
        "import moesaic.telemetry.log, moesaic.telemetry.metrics, moesaic.telemetry.report\n"
        "assert not logging.getLogger().handlers\n"
        "heavy = {'torch', 'matplotlib', 'jinja2', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
