"""`moesaic generate`: the answer on standard output, all else beside it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import PYTHON, Run, check_two_lines


def test_prompt_and_answer_are_printed_when_text_is_asked_for(cli: Run, finished: Path) -> None:
    answer = cli("generate", finished, "abc def", "--max-tokens", 5)
    as_json = json.loads(cli("generate", finished, "abc def", "--max-tokens", 5, "--json").out)
    assert (answer.code, answer.out) == (0, f"abc def{as_json['text']}\n")
    assert "5 generated, ended by length" in answer.err


def test_one_object_is_printed_alone_when_json_is_asked_for(cli: Run, finished: Path) -> None:
    answer = cli("generate", finished, "abc", "--json", "--max-tokens", 4, "--temperature", 0.5, "--seed", 1)
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 1
    result = json.loads(answer.out)
    assert result.keys() == {"text", "token_ids", "finish_reason", "usage", "error", "stats"}
    assert result["usage"]["completion_tokens"] == len(result["token_ids"]) == 4


def test_every_option_reaches_the_request_when_given(cli: Run, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moesaic.infer.engine import LLM
    from moesaic.infer.request import SamplingParams

    asked: list[SamplingParams] = []
    generate = LLM.generate

    def note(llm: LLM, prompts: str, params: SamplingParams) -> object:
        asked.append(params)
        return generate(llm, prompts, params)

    monkeypatch.setattr(LLM, "generate", note)
    options = "--max-tokens 3 --temperature 0.5 --top-k 4 --top-p 0.75 --min-p 0.25 --stop x --stop y --seed 6"
    assert cli("generate", finished, "a", *options.split(), "--ignore-eos", "--dtype", "float32", "--json").code == 0
    assert asked == [SamplingParams(3, 0.5, 4, 0.75, 0.25, ("x", "y"), 6, True)]


def test_prompt_is_read_from_standard_input_when_it_is_a_dash(
    cli: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads(cli("generate", finished, "abc", "--json", "--max-tokens", 4).out)["token_ids"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
    found = json.loads(cli("generate", finished, "-", "--json", "--max-tokens", 4).out)["token_ids"]
    assert found == expected


def test_prompt_is_sent_as_a_message_when_chat_is_asked_for(cli: Run, chatting: Path) -> None:
    answer = cli("generate", chatting, "abc", "--chat", "--max-tokens", 4)
    assert answer.code == 0
    assert "abc" not in answer.out


def test_device_and_its_memory_reach_the_model_when_given(
    cli: Run, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moesaic.errors import UnsupportedError
    from moesaic.infer import engine

    asked: list[object] = []

    def note(*arguments: object) -> None:
        asked.append(arguments[-2:])
        raise UnsupportedError("stopped here", "go on")

    monkeypatch.setattr(engine, "open_paged_model", note)
    check_two_lines(cli("generate", finished, "a", "--device", "cuda:1", "--device-memory", "8GiB"), "stopped here")
    check_two_lines(cli("generate", finished, "a", "--device", "cpu"), "stopped here")
    assert asked == [("cuda:1", 8 * 2**30), (None, None)]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["", "--max-tokens", "3"], "the prompt is empty"),
        (["a", "--max-tokens", "-3"], "max_tokens is -3"),
        (["a", "--temperature", "-1"], "temperature is -1"),
        (["a", "--temperature", "nan"], "temperature is nan"),
        (["a", "--top-k", "0"], "top_k is 0"),
        (["a", "--stop", ""], "stop is ('',)"),
        (["a", "--seed", "-1"], "seed is -1"),
        (["a", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["a", "--device", "gpu"], "unknown device 'gpu'"),
        (["a", "--device-memory", "8GiB"], "device_memory is given, and the CPU computes"),
        (["a", "--chat"], "no chat template"),
        (["a b c d " * 40], "tokens, the model reads 64"),
        (["\udcff"], "half of a surrogate pair"),
    ],
)
def test_generate_is_refused_in_two_lines_when_it_is_asked_for(
    arguments: list[str], named: str, cli: Run, finished: Path
) -> None:
    check_two_lines(cli("generate", finished, *arguments), named)


def test_generate_is_refused_when_there_is_no_model(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_two_lines(cli("generate", tmp_path / "file", "a"), "no model folder at")
    check_two_lines(cli("generate", tmp_path / "none", "a"), "no model folder at")
    check_two_lines(cli("generate", tmp_path, "a"), "config.json' is missing")
    check_two_lines(cli("generate", "a prompt where the model belongs " * 20, "a"), "File name too long")
    (tmp_path / "config.toml").write_text("")
    check_two_lines(cli("generate", tmp_path, "a"), "holds no finished model")


def test_generate_is_refused_when_standard_input_is_no_text(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", *PYTHON[1:], "generate", str(finished), "-"],
        input=b"\xff\xfe",
        capture_output=True,
        check=False,
        env={"PYTHONIOENCODING": "utf-8:strict", "PATH": ""},
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: standard input is no text:")
