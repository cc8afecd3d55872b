"""The report of a run: one HTML page that opens offline and explains what happened.

Everything is inside the file: style, charts as SVG, no script. Equal input gives equal bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.flush import replace_text
from moesaic.telemetry.course import build_course_section, build_loss_section
from moesaic.telemetry.outcome import choose_tiles, describe_outcome, read_outcome
from moesaic.telemetry.routing import build_balance_section, build_last_load_section, build_load_section
from moesaic.telemetry.section import Section

_TEMPLATE = "report.html"


@dataclass(frozen=True)
class SettingTable:
    """One section of a config, its values as text."""

    title: str
    settings: list[tuple[str, str]]


def write_report(
    run_name: str,
    rows: list[dict[str, Any]],
    config: dict[str, Any],
    summary: dict[str, Any],
    path: str | Path,
) -> None:
    """Write the report of a run as one self-contained HTML file, in place of an older one or not at all.

    Args:
        run_name: the title; the name of the file's folder where it names nothing, as '' and '.' do.
        rows: the metrics, as `read_metrics` returns them; whatever they lack is left out of the page.
        config: the resolved recipe as plain data, section by section.
        summary: what the rows do not hold, each optional: `baselines`, losses by name, nats a token;
            `samples`, a list of {"prompt", "text"}; `parameters` and `active_parameters`, counts.
        path: the file to write.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    outcome = read_outcome(rows)
    page = environment.get_template(_TEMPLATE).render(
        run_name=choose_title(run_name, Path(path)),
        sentence=describe_outcome(outcome),
        tiles=choose_tiles(outcome, summary),
        sections=build_sections(rows, config, summary),
        samples=summary.get("samples") or [],
        tables=tabulate_config(config),
    )
    replace_text(Path(path), page)


def choose_title(run_name: str, path: Path) -> str:
    """Return the run's name; where that only leads to a folder, as '' and '..' do, the name of the report's own."""
    return run_name if run_name.strip("./ ") else path.resolve().parent.name or "run"


def build_sections(rows: list[dict[str, Any]], config: dict[str, Any], summary: dict[str, Any]) -> list[Section]:
    """Return the chart sections that the rows have data for, in the order of the page."""
    sections = (
        build_loss_section(rows, summary.get("baselines") or {}),
        build_course_section(rows, (config.get("optim") or {}).get("clip_norm")),
        build_load_section(rows),
        build_last_load_section(rows),
        build_balance_section(rows),
    )
    return [section for section in sections if section.charts]


def tabulate_config(config: dict[str, Any]) -> list[SettingTable]:
    """Return one table a section, in order; settings outside any section come first, as 'run'."""
    loose = {key: value for key, value in config.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in config.items() if isinstance(value, dict)}
    if loose:
        sections = {"run": loose} | sections
    return [
        SettingTable(title, [(key, format_setting(value)) for key, value in section.items()])
        for title, section in sections.items()
    ]


def format_setting(value: Any) -> str:
    """Return a setting as a recipe writes it, except that text has no quotes and None is 'unset'."""
    if value is None:
        return "unset"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
