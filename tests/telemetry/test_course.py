"""The course of training is shown as far as it was measured."""

import pytest

from moesaic.telemetry.course import build_course_section, build_loss_section


def test_loss_chart_names_its_lines_and_baselines(fake_rows):
    (chart,) = build_loss_section(fake_rows(), {"unigram": 6.31, "bigram": 4.12}).charts
    for text in ("train ", "held-out ", "unigram 6.310", "bigram 4.120"):
        assert f">{text}" in chart.svg
    assert "count tokens" in chart.caption


def test_loss_chart_without_held_out_text_or_baselines_does_not_mention_them(fake_rows):
    (chart,) = build_loss_section(fake_rows(held_out_every=0), {}).charts
    assert "held-out" not in chart.svg + chart.caption
    assert "Dashed" not in chart.caption


def test_loss_section_is_empty_when_no_row_holds_a_loss():
    assert not build_loss_section([{"step": 1, "loss": None}], {"unigram": 6.31}).charts


def test_course_shows_speed_rate_and_norm(fake_rows):
    titles = [chart.title for chart in build_course_section(fake_rows(), None).charts]
    assert titles == ["Speed", "Learning rate", "Gradient norm"]


def test_course_leaves_out_what_was_not_measured():
    titles = [chart.title for chart in build_course_section([{"step": 1, "grad_norm": 2.0}], None).charts]
    assert titles == ["Gradient norm"]


@pytest.mark.parametrize("clip_norm", [None, 0.0])
def test_clipping_is_drawn_when_gradients_are_clipped(fake_rows, clip_norm):
    *_, clipped = build_course_section(fake_rows(), 0.5).charts
    *_, free = build_course_section(fake_rows(), clip_norm).charts
    assert "Clipped above 0.5 (dashed)." in clipped.caption
    assert "stroke-dasharray" in clipped.svg
    assert "stroke-dasharray" not in free.svg
    assert "Clipped" not in free.caption


def test_norm_of_many_magnitudes_is_logarithmic():
    rows = [{"step": step, "grad_norm": 10.0**step} for step in range(1, 6)]
    (chart,) = build_course_section(rows, None).charts
    assert ">100</text>" in chart.svg
    assert ">1K</text>" in chart.svg
