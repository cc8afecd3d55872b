"""A drawing becomes text that a page can hold beside others, in the page's own colours."""

import re

import matplotlib
import pytest

from moesaic.telemetry.svg import ROLES, render_svg, role_color


def draw(figure):
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    axes.plot([0, 1], [0, 1], color=role_color("train"), marker="o")
    axes.imshow([[0.0, 1.0]], extent=(0, 1, 0, 1), interpolation="none")
    figure.text(0.5, 0.5, "0.123456", color=role_color("ink"))


@pytest.fixture
def svg():
    return render_svg("one", (300, 200), draw, "A title", 'Says "so" & <more>')


def test_equal_drawings_give_equal_text(svg):
    assert svg == render_svg("one", (300, 200), draw, "A title", 'Says "so" & <more>')


def test_roles_become_variables_of_the_page(svg):
    assert "var(--train)" in svg
    assert "var(--ink)" in svg
    assert not any(role_color(role) in svg for role in ROLES)


def test_title_and_description_are_escaped(svg):
    assert 'aria-label="Says &quot;so&quot; &amp; &lt;more&gt;"' in svg
    assert "<title>A title</title>" in svg


def test_text_stays_text_in_the_font_of_the_page(svg):
    assert ">0.123456</text>" in svg
    assert "DejaVu" not in svg


def test_ids_are_unique_within_a_page_and_references_resolve(svg):
    page = svg + render_svg("two", (300, 200), draw, "A title", "")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) == set(ids) - set(re.findall(r"image\w+", page))


def test_nothing_restyles_or_names_the_world_outside(svg):
    assert "<style" not in svg
    assert "http" not in svg
    assert svg.startswith('<svg viewBox="0 0 300 200"')


def test_settings_of_the_reader_neither_count_nor_change():
    plain = render_svg("one", (300, 200), draw, "", "")
    with matplotlib.rc_context({"font.size": 40, "svg.fonttype": "path"}):
        assert render_svg("one", (300, 200), draw, "", "") == plain
        assert matplotlib.rcParams["font.size"] == 40
