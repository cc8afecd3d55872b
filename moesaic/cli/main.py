"""The table of commands, and the way from an exception to two lines and an exit code."""

import sys

import typer
from typer.exceptions import TyperException

from moesaic.cli.bench import bench_app
from moesaic.cli.convert import convert
from moesaic.cli.demo import demo
from moesaic.cli.generate import generate
from moesaic.cli.inspect import inspect
from moesaic.cli.output import report_error, report_usage
from moesaic.cli.train import train
from moesaic.errors import EXIT_INTERRUPTED

app = typer.Typer(
    name="moesaic",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
for command in (demo, train, generate, inspect, convert):
    app.command()(command)
app.add_typer(bench_app)


@app.callback()
def options(debug: bool = typer.Option(False, "--debug", help="Print tracebacks with errors.")) -> None:
    """Train, adapt and serve Mixture-of-Experts models whose experts do not fit the fast memory."""


def main() -> None:
    """Run a command and exit: 0 done, 2 the user's fault, 1 ours, 130 interrupted after saving."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
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
