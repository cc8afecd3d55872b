import os
import subprocess
import sys
from pathlib import Path

import pytest

from moesaic.config.data import DataConfig
from moesaic.data import prepare as module
from moesaic.data.prepare import prepare
from moesaic.errors import DataError
from moesaic.tokenizer.tokenizer import Tokenizer

PREPARE_AND_PRINT_DIGEST = """
import sys
from moesaic.config.data import DataConfig
from moesaic.data.prepare import prepare
from moesaic.tokenizer.tokenizer import Tokenizer
config = DataConfig(source=sys.argv[1], sequence_length=16, held_out=0.1)
tokenizer = Tokenizer.load(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
data = prepare(config, tokenizer)
print(data.digest, data.parts[0].train.read(0, 50).sum())
"""


def forbid(*arguments: object) -> None:
    raise AssertionError("tokenised again")


def test_data_is_tokenised_once_when_prepared_twice(prepare_corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_corpus()
    monkeypatch.setattr(module, "tokenise_source", forbid)
    again = prepare_corpus(sequence_length=8)
    assert again.digest == first.digest
    assert again.num_train_tokens == first.num_train_tokens > 1000


def test_data_is_tokenised_again_when_a_file_changes(prepare_corpus, corpus: Path) -> None:
    before = prepare_corpus()
    (corpus / "000.txt").write_text("another text, longer than it was before")
    assert prepare_corpus().digest != before.digest


def test_data_is_tokenised_again_when_the_held_out_share_changes(prepare_corpus) -> None:
    assert prepare_corpus(held_out=0.2).digest != prepare_corpus(held_out=0.1).digest


@pytest.mark.parametrize("file", ["manifest.json", "train-00000.bin", "held_out-documents.npy", "train-names.json"])
@pytest.mark.parametrize("content", [None, b"x"])
def test_data_is_tokenised_again_when_a_cached_file_is_damaged(
    prepare_corpus, file: str, content: bytes | None
) -> None:
    before = prepare_corpus()
    path = before.parts[0].folder / file
    expected = before.parts[0].train.read(0, 10**6).tolist()
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    after = prepare_corpus()
    assert (after.digest, after.parts[0].train.read(0, 10**6).tolist()) == (before.digest, expected)


def test_data_is_the_same_when_two_processes_prepare_at_once(
    corpus: Path, tokenizer: Tokenizer, tmp_path: Path, cache: Path
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    command = [sys.executable, "-c", PREPARE_AND_PRINT_DIGEST, str(corpus), str(tmp_path / "tokenizer")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    assert len(os.listdir(cache / "tokens")) == 1


def test_data_lies_in_the_given_folder_when_one_is_set(prepare_corpus, tmp_path: Path) -> None:
    assert prepare_corpus(cache=str(tmp_path / "mine")).parts[0].folder.parent == tmp_path / "mine" / "tokens"


def test_progress_reaches_the_total_when_data_is_new_or_cached(corpus: Path, tokenizer: Tokenizer) -> None:
    config = DataConfig(source=str(corpus), sequence_length=16)
    for _ in range(2):
        seen: list[tuple[int, int | None]] = []
        prepare(config, tokenizer, lambda done, total, seen=seen: seen.append((done, total)))
        assert seen[-1][0] == seen[-1][1] > 0
        assert seen == sorted(seen)


def test_parts_keep_their_order_and_weights_when_mixed(prepare_corpus, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("seven six five " * 200)
    mixture = [{"source": str(corpus), "weight": 3}, {"source": str(tmp_path / "b.txt")}]
    data = prepare_corpus(mixture=mixture)
    assert [(part.source, part.weight) for part in data.parts] == [
        (str(corpus), 3),
        (str(tmp_path / "b.txt"), 1),
    ]
    assert data.held_out == (data.parts[0].held_out, data.parts[1].held_out)
    assert data.digest != prepare_corpus().digest


def test_data_raises_with_the_counts_when_it_is_shorter_than_a_sequence(prepare_corpus, corpus: Path) -> None:
    num_tokens = prepare_corpus().num_train_tokens
    assert prepare_corpus(sequence_length=num_tokens - 1).parts[0].train.num_tokens == num_tokens
    needed = num_tokens + 1
    text = rf"gives {num_tokens} training tokens; one sequence of .* {num_tokens} needs {needed}"
    with pytest.raises(DataError, match=text) as caught:
        prepare_corpus(sequence_length=num_tokens)
    assert "data.sequence_length" in caught.value.hint


def test_data_is_not_evaluated_when_the_held_out_part_is_shorter_than_a_sequence(prepare_corpus) -> None:
    data = prepare_corpus(held_out=0.01, sequence_length=100)
    assert data.held_out is None
    assert data.parts[0].held_out is None
    assert "is not evaluated: its held-out part has" in data.notes[0]
    assert "one sequence needs 101" in data.notes[0]


def test_data_has_no_notes_when_nothing_should_be_held_out(prepare_corpus) -> None:
    data = prepare_corpus(held_out=0)
    assert (data.held_out, data.notes) == (None, ())
