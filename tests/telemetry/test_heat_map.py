"""Heat maps: one cell an expert and column, a fair load left blank."""

import base64
import io
import re

import pytest
from PIL import Image

from moesaic.telemetry.expert_load import LastLoad, LoadGrid
from moesaic.telemetry.heat_map import draw_color_bar, draw_last_load, draw_load_over_time
from moesaic.telemetry.svg import render_svg


def render(draw, *shown):
    return render_svg("map", (416, 230), lambda figure: draw(figure, *shown), "", "")


def read_cells(svg):
    """Return the image's cells as (red, green, blue, alpha), rows from the top."""
    (data,) = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")
    rows = [[image.getpixel((x, y)) for x in range(image.width)] for y in range(image.height)]
    # matplotlib stores an image bottom up and turns it over in the SVG.
    return rows[::-1] if "scale(1 -1)" in svg else rows


def test_fair_load_is_transparent_and_departures_have_two_hues():
    grid = LoadGrid(0, 1, 3, [[0.0, 0.5, 1.0], [4.0, 2.0, 1.0]])
    dead, idle, fair = read_cells(render(draw_load_over_time, grid))[0]
    over, busy, _ = read_cells(render(draw_load_over_time, grid))[1]
    assert fair[3] == 0
    assert dead[3] == over[3] == 255
    assert idle[3] == pytest.approx(busy[3], abs=10)
    assert dead[2] > dead[0]
    assert over[0] > over[2]


def test_loads_beyond_the_scale_take_its_ends():
    cells = read_cells(render(draw_load_over_time, LoadGrid(0, 1, 2, [[0.25, 0.0], [4.0, 16.0]])))
    assert cells[0][0] == cells[0][1]
    assert cells[1][0] == cells[1][1]


def test_single_record_fills_the_map():
    svg = render(draw_load_over_time, LoadGrid(0, 5, 5, [[1.0], [1.0]]))
    assert ">5</text>" in svg


def test_last_load_has_a_row_a_layer_and_greys_experts_that_a_layer_lacks():
    cells = read_cells(render(draw_last_load, LastLoad(9, [1, 3], [[1.0, 1.0, 1.0], [1.0, 1.0]])))
    assert (len(cells), len(cells[0])) == (2, 3)
    assert cells[1][2][0] == cells[1][2][1] == cells[1][2][2]
    assert cells[1][2][3] > 0


def test_last_load_names_its_layers():
    svg = render(draw_last_load, LastLoad(9, [1, 3], [[1.0, 1.0], [1.0, 1.0]]))
    assert ">3</text>" in svg
    assert ">layer</text>" in svg


def test_color_bar_names_both_ends_and_the_fair_share():
    svg = render(draw_color_bar)
    assert all(f">{text}</text>" in svg for text in ("¼ or less", "fair share", "4 or more"))
    assert len(read_cells(svg)[0]) == 63
