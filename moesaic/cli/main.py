"""The table of commands, and the way from an exception to two lines and an exit code."""

import io
import os
import sys

import typer
from typer.exceptions import TyperException

from moesaic.cli.bench import bench_app
from moesaic.cli.convert import convert
from moesaic.cli.demo import demo
from moesaic.cli.doctor import doctor
from moesaic.cli.generate import generate
from moesaic.cli.inspect import inspect
from moesaic.cli.output import report_error, report_usage
from moesaic.cli.plan import plan
from moesaic.cli.train import train
from moesaic.errors import EXIT_INTERRUPTED
from moesaic.telemetry.log import configure_logging

app = typer.Typer(
    name="moesaic",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for command in (demo, train, generate, plan, inspect, convert, doctor):
    app.command()(command)
app.add_typer(bench_app)


@app.callback()
def options(debug: bool = typer.Option(False, "--debug", help="Print tracebacks with errors.")) -> None:
    """Train Mixture-of-Experts language models, generate from them, exchange them with Hugging Face."""


def main() -> None:
    """Run a command and exit: 0 done, 2 the user's fault, 1 ours, 130 interrupted after saving."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    configure_logging("debug" if debug else "warning")
    # Looking for plugins of pydantic among all installed packages takes a tenth of the time of a short answer.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Text of a model may hold characters that the terminal cannot show: no reason to end.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = app(arguments or ["--help"], standalone_mode=False)
    except TyperException as mistake:
        text = mistake.format_message() if hasattr(mistake, "format_message") else str(mistake)
        context = getattr(mistake, "ctx", None)
        code = report_usage(text, context.command_path if context else "moesaic") if text else 2
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as failure:
        code = report_error(failure, debug)
    sys.exit(code or 0)
