import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesaic.config.data import DataConfig
from moesaic.data.loader import Batch, Loader
from moesaic.errors import DataError
from moesaic.ops.loss import IGNORED_LABEL

S = 16
RESUME_SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def mixture(corpus: Path, tmp_path: Path) -> list[dict]:
    (tmp_path / "other.txt").write_text("seven six five four " * 100)
    return [{"source": str(corpus), "weight": 3.0}, {"source": str(tmp_path / "other.txt"), "weight": 1.0}]


@pytest.fixture
def build(prepare_corpus):
    """Return a function that builds a loader under given settings of the data section."""

    def build_loader(batch_size: int = 4, **given: object) -> Loader:
        prepared = prepare_corpus(sequence_length=S, **given)
        section = {"source": "-", "sequence_length": S, **given}
        if "mixture" in given:
            del section["source"]
        return Loader(prepared, DataConfig.model_validate(section), batch_size)

    return build_loader


def ids(*batches: Batch) -> list[list[int]]:
    return torch.cat([batch.ids_BS for batch in batches]).tolist()


def test_batch_has_shifted_labels_and_no_documents_when_they_are_not_respected(build) -> None:
    batch = build().next_batch()
    assert batch.ids_BS.shape == batch.labels_BS.shape == (4, S)
    assert (batch.ids_BS.dtype, batch.labels_BS.dtype) == (torch.int64, torch.int64)
    assert torch.equal(batch.ids_BS[:, 1:], batch.labels_BS[:, :-1])
    assert (batch.document_ids_BS, batch.positions_BS) == (None, None)


def test_batch_keeps_to_documents_when_they_are_respected(build) -> None:
    batch = build(batch_size=30, respect_documents=True).next_batch()
    assert batch.document_ids_BS is not None
    assert batch.positions_BS is not None
    crossing = batch.document_ids_BS[:, 1:] != batch.document_ids_BS[:, :-1]
    assert crossing.any()
    assert (batch.labels_BS[:, :-1][crossing] == IGNORED_LABEL).all()
    assert (batch.positions_BS[:, 1:][crossing] == 0).all()
    assert (batch.positions_BS[:, 0] == 0).all()


@RESUME_SETTINGS
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), stop=st.integers(0, 6))
def test_loader_goes_on_alike_when_resumed_at_any_point(build, mixture: list, sizes: list, stop: int) -> None:
    whole = build(mixture=mixture)
    expected = [whole.next_batch(size) for size in sizes]
    first = build(mixture=mixture)
    for size in sizes[:stop]:
        first.next_batch(size)
    resumed = build(mixture=mixture)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [ids(resumed.next_batch(size)) for size in sizes[stop:]] == [ids(batch) for batch in expected[stop:]]
    assert resumed.next_sample == sum(sizes)


def test_samples_are_the_same_when_the_batch_size_changes(build, mixture: list) -> None:
    one, two = build(mixture=mixture, batch_size=1), build(mixture=mixture, batch_size=12)
    assert ids(*(one.next_batch() for _ in range(12))) == ids(two.next_batch())


def test_samples_are_a_processes_own_when_asked_for_by_number(build) -> None:
    loader = build()
    whole = ids(loader.batch_at(8, 4))
    assert ids(loader.batch_at(8, 2), loader.batch_at(10, 2)) == whole
    assert loader.next_sample == 0


def test_epoch_takes_each_sequence_once_and_the_next_in_another_order(build) -> None:
    loader = build()
    num_sequences = (loader._prepared.parts[0].train.num_tokens - 1) // S
    first, second = ids(loader.next_batch(num_sequences)), ids(loader.next_batch(num_sequences))
    assert sorted(first) == sorted(second)
    assert first != second


def test_order_differs_when_the_seed_does(build) -> None:
    assert ids(build(seed=1).next_batch()) != ids(build(seed=2).next_batch())


def test_batch_describes_samples_and_documents_when_asked(build, corpus: Path) -> None:
    loader = build()
    loader.next_batch(8)
    text = loader.next_batch(2).describe()
    assert text.startswith(f"samples 8..9 of {corpus}: ")
    assert text.count(".txt") >= 2


def test_batch_describes_every_source_when_mixed(build, mixture: list) -> None:
    text = build(mixture=mixture).next_batch(8).describe()
    assert text.startswith(f"samples 0..7 of {mixture[0]['source']}: ")
    assert text.endswith(f"; {mixture[1]['source']}: other.txt")


def test_loader_raises_when_the_data_changed_since_the_checkpoint(build, corpus: Path) -> None:
    state = build().state_dict()
    (corpus / "000.txt").write_text("changed")
    with pytest.raises(DataError, match=r"the data or the tokenizer changed .* digest [0-9a-f]+ then") as caught:
        build().load_state_dict(state)
    assert "new run" in caught.value.hint


@pytest.mark.parametrize(("name", "then"), [("sequence_length", 8), ("seed", 5), ("weights", [2.0])])
def test_loader_raises_with_the_setting_when_one_that_decides_the_order_changed(build, name: str, then) -> None:
    state = build().state_dict() | {name: then}
    with pytest.raises(DataError, match=rf"data {name} was .* when the checkpoint was written, it is"):
        build().load_state_dict(state)


def test_loader_raises_when_the_saved_position_is_incomplete(build) -> None:
    state = build().state_dict()
    del state["next_sample"]
    with pytest.raises(DataError, match="the saved position of the data lacks 'next_sample'"):
        build().load_state_dict(state)


def test_evaluation_takes_each_held_out_sequence_once_when_mixed(build, mixture: list) -> None:
    loader = build(mixture=mixture)
    expected = []
    for part in loader._prepared.parts:
        stream = part.held_out.read(0, part.held_out.num_tokens).tolist()
        expected += [stream[start : start + S] for start in range(0, len(stream) - S, S)]
    batches = list(loader.evaluation_batches(batch_size=3))
    assert sorted(ids(*batches)) == sorted(expected)
    assert {len(batch.ids_BS) for batch in batches[:-1]} == {3}
    assert batches[1].first_sample == 3


def test_evaluation_is_the_same_when_repeated_and_moves_nothing(build) -> None:
    loader = build()
    first = ids(*loader.evaluation_batches())
    loader.next_batch()
    assert ids(*loader.evaluation_batches()) == first
    assert loader.next_sample == 4


def test_evaluation_stops_when_max_batches_are_given(build) -> None:
    loader = build()
    assert len(list(loader.evaluation_batches(batch_size=2, max_batches=3))) == 3
    assert list(loader.evaluation_batches(max_batches=0)) == []


def test_evaluation_has_no_batches_when_nothing_is_held_out(build) -> None:
    assert list(build(held_out=0).evaluation_batches()) == []
