"""A chart is drawn for the width it gets, and described in words."""

from moesaic.telemetry.chart import Level, Line, Plot
from moesaic.telemetry.section import describe_series, draw_line_chart
from moesaic.telemetry.series import Series

SERIES = Series([1, 2, 3], [5.0, 2.0, 3.0])


def test_chart_as_wide_as_the_page_has_a_narrow_drawing_too():
    chart = draw_line_chart("Loss", "", 1, Plot("nats", [Line(SERIES, "train")]))
    assert 'viewBox="0 0 880 ' in chart.svg
    assert 'viewBox="0 0 416 ' in chart.narrow_svg


def test_chart_beside_others_has_one_drawing():
    assert draw_line_chart("Loss", "", 3, Plot("nats", [Line(SERIES, "train")])).narrow_svg == ""


def test_chart_is_described_by_its_full_lines_and_levels():
    lines = [Line(SERIES, "train", "faint"), Line(SERIES, "train")]
    svg = draw_line_chart("Norm", "", 3, Plot("nats", lines, [Level(1.0)])).svg
    assert (
        'aria-label="Norm, nats, over steps. Norm: from 5 at step 1 to 3 at step 3, between 2 and 5. Dashed line at 1."'
    ) in svg


def test_single_step_is_described_without_a_range():
    assert describe_series("loss", Series([4], [2.5])) == "loss: 2.5 at step 4."
