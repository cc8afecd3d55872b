"""`moesaic inspect`."""

import json
from pathlib import Path

from tests.cli.command import Run, check_two_lines


def test_facts_are_printed_as_one_object_when_json_is_asked_for(cli: Run, finished: Path) -> None:
    answer = cli("inspect", finished, "--json")
    assert (answer.code, answer.err) == (0, "")
    facts = json.loads(answer.out)
    assert (facts["family"], facts["layers"], facts["experts_per_layer"], facts["dtype"]) == ("mixtral", 2, 4, "F32")


def test_facts_are_printed_for_people_when_a_run_is_inspected(cli: Run, finished: Path) -> None:
    answer = cli("inspect", finished)
    assert (answer.code, answer.err) == (0, "")
    lines = dict(line.strip().split("  ", 1) for line in answer.out.splitlines())
    assert lines["family"].strip() == "mixtral"
    assert lines["parameters"].strip() == "44.2K"
    assert lines["expert page bytes"].strip() == "9 KiB"


def test_inspect_is_refused_in_two_lines_when_the_folder_holds_no_model(cli: Run, tmp_path: Path) -> None:
    check_two_lines(cli("inspect", tmp_path), "config.json' is missing")
    check_two_lines(cli("inspect", tmp_path, "--json"), "config.json' is missing")
