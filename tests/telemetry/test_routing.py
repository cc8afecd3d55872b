"""Routing is shown for MoE models, layer by layer, and only where it says something."""

import pytest

from moesaic.telemetry.routing import build_balance_section, build_last_load_section, build_load_section


def test_every_moe_layer_has_its_map(fake_rows):
    section = build_load_section(fake_rows(num_layers=3))
    assert [chart.title for chart in section.charts] == ["Layer 0", "Layer 1", "Layer 2"]
    assert "fair share" in section.legend_svg


@pytest.mark.parametrize(("num_layers", "num_columns"), [(1, 2), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3)])
def test_maps_fill_their_rows(fake_rows, num_layers, num_columns):
    assert build_load_section(fake_rows(steps=5, num_layers=num_layers)).num_columns == num_columns


def test_maps_are_described_by_the_range_of_the_last_load():
    rows = [{"step": 1, "expert_load": {"layers": {"0": [0.25, 0.75]}}}]
    told = "At the end, loads lie between 0.50 and 1.50 times the fair share."
    assert told in build_load_section(rows).charts[0].svg
    assert told in build_last_load_section(rows).charts[0].svg


def test_balance_leaves_out_what_is_zero_throughout(fake_rows):
    titles = [chart.title for chart in build_balance_section(fake_rows()).charts]
    assert titles == ["Worst overload (MaxVio)", "Load entropy", "Balance loss", "Router z-loss"]


def test_balance_shows_dead_experts_and_drops_when_there_were_any(fake_rows):
    rows = fake_rows()
    rows[3] |= {"dead_experts": 2, "dropped_share": 0.125}
    titles = [chart.title for chart in build_balance_section(rows).charts]
    assert titles[-2:] == ["Dead experts", "Dropped choices"]


def test_even_load_is_drawn_where_it_is_not_zero(fake_rows):
    charts = {chart.title: chart.svg for chart in build_balance_section(fake_rows()).charts}
    assert "Dashed line at 1." in charts["Load entropy"]
    assert "Dashed line" not in charts["Router z-loss"]


def test_dense_run_has_no_routing_charts(fake_rows):
    rows = fake_rows(num_layers=0)
    for build in (build_load_section, build_last_load_section, build_balance_section):
        assert not build(rows).charts
