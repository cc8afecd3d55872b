"""Loads are told relative to the fair share, in time order, within a bound."""

import pytest

from moesaic.telemetry.expert_load import MAX_CELLS, MAX_COLUMNS, read_last_load, read_load_grids


def row(step, **layers):
    return {"step": step, "expert_load": {"layers": {key[1:]: shares for key, shares in layers.items()}}}


def test_one_column_a_record_when_records_are_few():
    rows = [row(2, L0=[0.5, 0.5]), {"step": 3}, row(4, L0=[0.25, 0.75]), row(6, L0=[0.0, 1.0])]
    (grid,) = read_load_grids(rows)
    assert (grid.layer, grid.first_step, grid.last_step) == (0, 2, 6)
    assert [list(loads) for loads in grid.relative] == [[1.0, 0.5, 0.0], [1.0, 1.5, 2.0]]


def test_layers_stand_in_number_order():
    rows = [row(1, L10=[1.0], L9=[1.0], L2=[1.0])]
    assert [grid.layer for grid in read_load_grids(rows)] == [2, 9, 10]
    assert read_last_load(rows).layers == [2, 9, 10]


def test_column_without_a_record_repeats_the_one_before():
    rows = [row(1, L0=[0.0, 1.0]), row(2, L0=[0.5, 0.5]), row(100, L0=[1.0, 0.0])]
    (grid,) = read_load_grids(rows)
    assert list(grid.relative[0]) == [0.5, 0.5, 2.0]


def test_records_of_one_column_are_averaged_in_a_long_run():
    rows = [row(step, L0=[0.25, 0.75] if step % 2 else [0.75, 0.25]) for step in range(1, 2 * MAX_COLUMNS * 5)]
    (grid,) = read_load_grids(rows)
    assert len(grid.relative[0]) == MAX_COLUMNS
    assert all(load == pytest.approx(1, abs=0.15) for load in grid.relative[0])


def test_wide_model_gets_fewer_columns():
    shares = [1 / 256] * 256
    rows = [row(step, **{f"L{layer}": shares for layer in range(20)}) for step in range(1, 101)]
    grids = read_load_grids(rows)
    assert sum(len(loads) for grid in grids for loads in grid.relative) <= MAX_CELLS
    assert len(grids[0].relative[0]) < 100


def test_null_share_counts_as_no_load():
    (grid,) = read_load_grids([row(1, L0=[None, 1.0])])
    assert [list(loads) for loads in grid.relative] == [[0.0], [2.0]]


def test_last_load_is_the_last_recorded():
    rows = [row(1, L0=[0.5, 0.5]), row(5, L0=[0.25, 0.75]), {"step": 6}]
    load = read_last_load(rows)
    assert (load.step, load.relative) == (5, [[0.5, 1.5]])


def test_dense_run_has_no_load():
    assert read_load_grids([{"step": 1}]) == []
    assert read_last_load([{"step": 1}]) is None
