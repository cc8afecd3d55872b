"""`moesaic plan`."""

import json
from pathlib import Path

import pytest

from moesaic.checkpoint.export import export_model
from moesaic.testing.tiny import tiny_model
from tests.cli.command import Run, check_two_lines
from tests.cli.conftest import RecipeFile

RATES = ("--memory-rate", "28GB", "--disk-rate", "1.5GB", "--arithmetic-rate", "3000")
SHORT = ("--prompt-tokens", "30")


def _plan(cli: Run, *arguments: str | Path) -> str:
    """Return what is printed, and nothing goes wrong."""
    answer = cli("plan", *arguments)
    assert (answer.code, answer.err) == (0, "")
    return answer.out


def test_plan_of_a_model_is_one_object_when_json_is_asked_for(cli: Run, finished: Path) -> None:
    facts = json.loads(_plan(cli, finished, "--memory", "3GiB", *SHORT, *RATES, "--json"))
    assert set(facts) == {
        "model",
        "family",
        "dtype",
        "smallest_budget_bytes",
        "whole_budget_bytes",
        "budget_is_given",
        "answer_tokens",
        "page_bytes",
        "stored_page_bytes",
        "num_layers",
        "num_experts",
        "experts_per_token",
        "num_pages",
        "dense_read_bytes",
        "prompt_tokens",
        "prompt_operations",
        "memory_bytes_per_token",
        "disk_bytes_per_token",
        "rates",
        "rates_measured",
        "rates_stated",
        "plan",
        "budgets",
    }
    assert facts["rates"] == {"memory": 28e9, "disk": 1.5e9, "arithmetic": 3e12}
    assert (facts["plan"]["budget"], facts["plan"]["num_in_use"], facts["prompt_tokens"]) == (3 * 2**30, 8, 30)
    assert set(facts["plan"]) == {
        "budget",
        "num_slots",
        "num_in_use",
        "num_sections",
        "share",
        "holdings",
        "even",
        "traced",
        "first_prompt_seconds",
        "later_prompt_seconds",
    }
    assert [row["num_in_use"] for row in facts["budgets"]] == [2, 4, 6, 8]


def test_plan_of_a_model_is_told_to_people_when_nothing_else_is_asked_for(cli: Run, finished: Path) -> None:
    out = _plan(cli, finished, "--memory", "3GiB", *SHORT, *RATES)
    for text in (
        "(mixtral, float32) within 3 GiB",
        "dense core",
        "8 of 8 experts have a slot: 2 of 2 layers at once, or 4 experts of 4 in each",
        "stated: memory 26.1 GiB/s, disk 1.4 GiB/s, arithmetic 3,000 GFLOP/s",
        "smallest budget that works ",
        "> 3 GiB",
        "hits: of a token's experts",
    ):
        assert text in out
    # Purposes, and how much of the budget each takes.
    process = next(line for line in out.splitlines() if line.startswith("process"))
    assert {"█", "#"} & set(process)
    assert max(map(len, out.splitlines())) <= 110


def test_rates_are_measured_when_none_is_stated(cli: Run, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moesaic.infer.plan.BUFFER_BYTES", 2**20)
    out = _plan(cli, finished, *SHORT)
    assert "measured just now: memory " in out
    assert "stated: " not in out
    assert "(no --memory given)" in out


def test_plan_has_no_experts_when_the_model_has_none(cli: Run, tmp_path: Path) -> None:
    export_model(tiny_model(num_experts=0, num_experts_per_tok=0), tmp_path / "model")
    out = _plan(cli, tmp_path / "model", *SHORT, *RATES[:2])
    for word in ("slot", "hits", "disk "):
        assert word not in out.replace("buffers of the disk", "")


def test_budget_is_refused_with_the_figures_when_it_is_impossible(cli: Run, finished: Path) -> None:
    for more in ((), ("--json",)):
        answer = cli("plan", finished, "--memory", "20MiB", *SHORT, *more)
        check_two_lines(answer, "a budget of 20 MiB is too small: process ")
        for purpose in (
            "dense core",
            "buffers of the disk",
            "keys and values",
            "activations",
            "2 expert pages of 12 KiB",
        ):
            assert purpose in answer.err
        least = answer.err.split("give ")[1].split()[0]
    assert cli("plan", finished, "--memory", f"{int(least.removesuffix('MiB')) + 64}MiB", *SHORT, *RATES).code == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--memory", "much"), "memory is 'much'"),
        (("--disk-rate", "fast"), "disk-rate is 'fast'"),
        (("--memory-rate", "0"), "memory-rate is '0'"),
        (("--arithmetic-rate", "0"), "--arithmetic-rate"),
        (("--prompt-tokens", "0"), "--prompt-tokens"),
        (("--prompt-tokens", "64"), "a prompt of 64 tokens is too long: the model reads 64"),
        (("--dtype", "int3"), "unknown dtype 'int3'"),
    ],
)
def test_plan_is_refused_in_two_lines_when_an_option_cannot_be_met(
    arguments: tuple[str, str], named: str, cli: Run, finished: Path
) -> None:
    check_two_lines(cli("plan", finished, *arguments), named)


def test_plan_is_refused_when_there_is_no_model(cli: Run, tmp_path: Path) -> None:
    check_two_lines(cli("plan", tmp_path), "config.json' is missing")
    check_two_lines(cli("plan", tmp_path / "no.toml"), "no recipe at ")


def test_plan_of_a_recipe_is_one_object_when_json_is_asked_for(cli: Run, recipe_file: RecipeFile) -> None:
    facts = json.loads(_plan(cli, recipe_file(), "--memory", "300KiB", "--json"))
    assert set(facts) == {
        "recipe",
        "parameters",
        "dense_parameters",
        "expert_parameters",
        "moe_layers",
        "touched_share",
        "state_bytes_per_parameter",
        "tiers",
        "machines",
        "largest_expert_parameters",
        "whole_bytes",
    }
    assert facts["tiers"]["memory"]["machine_bytes"] == 300 * 2**10
    assert facts["machines"] == 3


def test_plan_of_a_recipe_is_told_to_people_when_nothing_else_is_asked_for(cli: Run, recipe_file: RecipeFile) -> None:
    out = _plan(cli, recipe_file(), "--memory", "300KiB")
    assert "machines that hold it: 3" in out
    tiers = [line.split()[0] for line in out.splitlines() if line.startswith(("memory ", "disk "))]
    assert tiers == ["memory", "disk"]


@pytest.mark.parametrize("option", [SHORT, RATES[:2], ("--dtype", "float32")])
def test_option_is_refused_when_it_says_nothing_of_a_recipe(
    option: tuple[str, str], cli: Run, recipe_file: RecipeFile
) -> None:
    check_two_lines(cli("plan", recipe_file(), *option), "is a recipe, planned for memory alone")


def test_layout_of_a_recipe_is_told_when_ranks_are_given(cli: Run, recipe_file: RecipeFile) -> None:
    recipe = recipe_file({"parallel.data_shard": 4})
    facts = json.loads(_plan(cli, recipe, "--ranks", "8", "--json"))
    assert facts["degrees"] == {
        "data_replicate": 2,
        "data_shard": 4,
        "expert": 4,
        "tensor": 1,
        "splits_embedding": False,
    }
    assert facts["state_bytes"] == sum(group["state_bytes"] for group in facts["parameters"])
    assert facts["whole_bytes"] / 4 == pytest.approx(facts["state_bytes"], rel=0.05)
    told = _plan(cli, recipe, "--ranks", "8")
    assert "8 ranks: data_replicate 2, data_shard 4, expert 4, tensor 1" in told
    experts = next(line for line in told.splitlines() if line.startswith("moe.experts.gate_up"))
    assert experts.split()[1:6] == ["2", "1/4", "over", "expert", "2"]


def test_ranks_are_refused_when_they_do_not_fit(cli: Run, recipe_file: RecipeFile, finished: Path) -> None:
    check_two_lines(cli("plan", finished, "--ranks", "2"), "is no recipe: --ranks is about training")
    recipe = recipe_file({"parallel.expert": 3})
    check_two_lines(cli("plan", recipe, "--ranks", "4"), "parallel.expert is 3, which does not divide the 4 ranks")
