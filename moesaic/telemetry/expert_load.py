"""Expert load over a run, relative to the fair share.

A row may hold `expert_load`: {"layers": {"0": [share of each expert], ...}}, shares of a layer summing to 1.
The relative load of an expert is its share times the number of experts: 1 is fair, 0 is dead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Cells of all heat maps of a report together; a cell costs about two bytes of the page.
MAX_CELLS = 240_000
MAX_COLUMNS = 120
MIN_COLUMNS = 24


@dataclass(frozen=True)
class LoadGrid:
    """Relative load of one layer's experts over the run.

    `relative[expert][column]`, columns being equal stretches of steps from `first_step` to `last_step`.
    """

    layer: int
    first_step: int
    last_step: int
    relative: Sequence[Sequence[float]]


@dataclass(frozen=True)
class LastLoad:
    """Relative load at the last step that recorded it: `relative[index of layer][expert]`."""

    step: int
    layers: Sequence[int]
    relative: Sequence[Sequence[float]]


def read_load_grids(rows: list[dict[str, Any]]) -> list[LoadGrid]:
    """Return one grid a MoE layer, in layer order; no grids when no row holds a load.

    Records within one column are averaged; a column without a record repeats the one before it. Columns are
    as many as records, and fewer where a run is long or a model wide.
    """
    records = [row for row in rows if row.get("expert_load")]
    if not records:
        return []
    layers = records[-1]["expert_load"]["layers"]
    num_experts = sum(len(shares) for shares in layers.values())
    affordable = max(MIN_COLUMNS, MAX_CELLS // num_experts)
    num_columns = min(len(records), MAX_COLUMNS, affordable)
    return [_read_grid(records, layer, num_columns) for layer in sorted(layers, key=int)]


def read_last_load(rows: list[dict[str, Any]]) -> LastLoad | None:
    """Return the last recorded load, or None when no row holds one."""
    for row in reversed(rows):
        if row.get("expert_load"):
            layers = row["expert_load"]["layers"]
            names = sorted(layers, key=int)
            return LastLoad(row["step"], [int(name) for name in names], [_relative(layers[name]) for name in names])
    return None


def _read_grid(records: list[dict[str, Any]], layer: str, num_columns: int) -> LoadGrid:
    first_step, last_step = records[0]["step"], records[-1]["step"]
    columns: list[list[list[float]]] = [[] for _ in range(num_columns)]
    for record in records:
        column = (record["step"] - first_step) * num_columns // max(1, last_step - first_step)
        columns[min(column, num_columns - 1)].append(_relative(record["expert_load"]["layers"][layer]))
    filled: list[list[float]] = []
    for loads in columns:
        filled.append([sum(load) / len(loads) for load in zip(*loads, strict=True)] if loads else filled[-1])
    return LoadGrid(int(layer), first_step, last_step, list(zip(*filled, strict=True)))


def _relative(shares: Sequence[float | None]) -> list[float]:
    return [(share or 0.0) * len(shares) for share in shares]
