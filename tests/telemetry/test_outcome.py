"""Key figures come from the rows, and what is not known is not told."""

import math

import pytest

from moesaic.telemetry.outcome import Outcome, choose_tiles, describe_outcome, format_perplexity, read_outcome


def test_sentence_tells_steps_tokens_time_speed_and_losses():
    outcome = Outcome(1200, 39_300_000, 200.0, 3.41, 21, 3.52, 195_000.0)
    assert describe_outcome(outcome) == (
        "1,200 steps over 39.3M tokens in 3 min 20 s, at a median of 195K tokens/s; the loss ended at "
        "3.410 in training and 3.520 on held-out text (perplexity 33.8)."
    )


def test_sentence_leaves_out_what_is_unknown():
    assert describe_outcome(Outcome(steps=1, train_loss=2.0)) == "1 step; the loss ended at 2.000 in training."
    assert describe_outcome(Outcome(steps=2)) == "2 steps."
    assert describe_outcome(read_outcome([])) == "No step was recorded."


def test_train_loss_is_the_mean_of_the_last_steps(fake_rows):
    rows = fake_rows(steps=120)
    outcome = read_outcome(rows)
    assert outcome.train_steps == 3
    assert outcome.train_loss == pytest.approx(sum(row["loss"] for row in rows[-3:]) / 3)


def test_speed_is_the_median_so_that_a_slow_first_step_does_not_count():
    rows = [{"step": step, "tokens_per_s": 1.0 if step == 1 else 100.0} for step in range(1, 6)]
    assert read_outcome(rows).tokens_per_s == 100


def test_held_out_loss_is_the_last_one_measured(fake_rows):
    rows = fake_rows(steps=25, held_out_every=10)
    assert read_outcome(rows).held_out_loss == rows[19]["held_out_loss"]


def test_tiles_of_a_dense_run_do_not_speak_of_experts(fake_rows):
    labels = [tile.label for tile in choose_tiles(read_outcome(fake_rows(num_layers=0)), {})]
    assert labels == ["Train loss", "Held-out loss", "Speed", "Wall time", "Tokens seen"]


def test_tiles_of_a_moe_run_tell_balance_and_parameters(fake_rows):
    tiles = choose_tiles(read_outcome(fake_rows()), {"parameters": 29_400_000, "active_parameters": 8_100_000})
    told = {tile.label: (tile.value, tile.note) for tile in tiles}
    assert told["Parameters"] == ("29.4M", "8.1M active for a token")
    assert told["Worst overload"][0] == "0.40"
    assert told["Dead experts"][0] == "0"


def test_perplexity_of_a_diverged_loss_is_no_overflow():
    assert format_perplexity(math.log(20)) == "20"
    assert format_perplexity(1e6) == "beyond 10T"
