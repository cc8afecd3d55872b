"""Targets: figures held against limits, and what was not measured told as such."""

from typing import Any

import pytest

from moesaic.bench.target import TARGETS, check_targets, time_of

FAST = {"moesaic": 10.0, "dense": 9.0, "dense_split": 8.0, "grouped_mm": 36.0, "eager": 30.0}


def _case(level: str, tokens: int, times: dict[str, float], dtype: str = "bfloat16", **more: Any) -> dict[str, Any]:
    figures = {name: {"median_ms": each} for name, each in times.items()}
    return {"name": f"{level} T{tokens}", "level": level, "T": tokens, "dtype": dtype, "times": figures, **more}


def _rows(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["figure"]: row for row in check_targets([case])}


def test_ratio_is_held_against_its_limit_when_both_were_measured() -> None:
    rows = _rows(_case("forward", 1024, FAST))
    assert rows["moesaic / dense"]["found"] == 1.25  # the faster dense one
    assert rows["moesaic / dense"]["met"]
    assert rows["grouped_mm / moesaic"]["found"] == 3.6
    assert rows["grouped_mm / moesaic"]["met"]
    slower = _rows(_case("forward", 1024, {**FAST, "moesaic": 12.5}))
    assert (slower["moesaic / dense"]["met"], slower["grouped_mm / moesaic"]["met"]) == (False, False)


def test_reason_is_told_when_a_candidate_was_not_measured() -> None:
    row = _rows(_case("forward_backward", 1024, FAST))["deepspeed / moesaic"]
    assert (row["found"], row["met"], row["reason"]) == (None, False, "not measured: run make peers")
    row = _rows(_case("forward", 1, FAST))["moesaic / moesaic_int4"]
    assert (row["found"], row["met"], row["reason"]) == (None, False, "not measured")


@pytest.mark.parametrize(("percent", "met"), [(84.9, False), (85.0, True)])
def test_one_token_is_held_against_bandwidth_and_fastest_peer_when_measured(percent: float, met: bool) -> None:
    rows = _rows(_case("forward", 1, FAST, percent_of_bandwidth=percent))
    assert (rows["percent_of_bandwidth"]["found"], rows["percent_of_bandwidth"]["met"]) == (percent, met)
    assert rows["transformers / moesaic"]["found"] == 3.0


@pytest.mark.parametrize(("level", "tokens", "dtype"), [("forward", 64, "bfloat16"), ("forward", 1024, "float32")])
def test_other_cases_have_no_targets_when_held_against_the_table(level: str, tokens: int, dtype: str) -> None:
    assert check_targets([_case(level, tokens, FAST, dtype)]) == []


def test_every_target_of_the_table_is_reached_by_a_case_when_all_are_measured() -> None:
    cases = [_case(level, tokens, FAST) for level, tokens in {(each.level, each.tokens) for each in TARGETS}]
    assert len(check_targets(cases)) == len(TARGETS)


def test_time_of_a_group_is_that_of_its_fastest_when_asked_for() -> None:
    times = {name: {"median_ms": each} for name, each in FAST.items()}
    assert (time_of("transformers", times), time_of("eager", times), time_of("deepspeed", times)) == (30.0, 30.0, None)


def test_training_step_is_held_against_the_peer_that_has_the_name_of_its_group() -> None:
    (row,) = check_targets([_case("train_step", 1024, {"moesaic": 10.0, "transformers": 26.0})])
    assert (row["found"], row["met"]) == (2.6, True)
