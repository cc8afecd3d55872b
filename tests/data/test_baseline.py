import math
from collections import Counter, defaultdict

import pytest

from moesaic.config.data import DataConfig
from moesaic.data import baseline
from moesaic.data.baseline import bigram_loss, unigram_loss
from moesaic.data.loader import Batch, Loader
from moesaic.data.prepare import PreparedData
from moesaic.errors import DataError


def stream_and_starts(split) -> tuple[list[int], set[int]]:
    return split.read(0, split.num_tokens).tolist(), set(split.document_starts.tolist())


def batches(data: PreparedData, size: int = 3) -> list[Batch]:
    config = DataConfig.model_validate(
        {"source": "any", "sequence_length": data.sequence_length, "respect_documents": data.respect_documents}
    )
    return list(Loader(data, config, size).evaluation_batches())


def obvious_losses(data: PreparedData) -> tuple[float, float]:
    """The formulas of the docstrings, token by token."""
    unigrams, followers = Counter(), defaultdict(Counter)
    for part in data.parts:
        stream, starts = stream_and_starts(part.train)
        unigrams.update(stream)
        for place in range(1, len(stream)):
            if not (data.respect_documents and place in starts):
                followers[stream[place - 1]][stream[place]] += 1
    total = sum(unigrams.values()) + data.vocab_size
    unigram, bigram = [], []
    for split in data.held_out:
        stream, starts = stream_and_starts(split)
        for place in range(1, (len(stream) - 1) // data.sequence_length * data.sequence_length + 1):
            if data.respect_documents and place in starts:
                continue
            after, word = followers[stream[place - 1]], stream[place]
            p = (unigrams[word] + 1) / total
            unigram.append(-math.log(p))
            kinds = len(after)
            bigram.append(-math.log((after[word] + kinds * p) / (after.total() + kinds) if after else p))
    return sum(unigram) / len(unigram), sum(bigram) / len(bigram)


@pytest.mark.parametrize("respect_documents", [False, True])
@pytest.mark.parametrize("chunk_tokens", [7, 2**22])
def test_losses_equal_the_obvious_loops_when_counted_in_chunks(
    prepare_corpus, monkeypatch: pytest.MonkeyPatch, respect_documents: bool, chunk_tokens: int
) -> None:
    monkeypatch.setattr(baseline, "_CHUNK_TOKENS", chunk_tokens)
    data = prepare_corpus(respect_documents=respect_documents)
    unigram, bigram = obvious_losses(data)
    assert unigram_loss(data, batches(data)) == pytest.approx(unigram, rel=1e-12)
    assert bigram_loss(data, batches(data)) == pytest.approx(bigram, rel=1e-12)
    assert bigram < unigram < math.log(data.vocab_size)


def test_losses_count_all_parts_when_mixed(prepare_corpus, corpus, tmp_path) -> None:
    (tmp_path / "other.txt").write_text("zebra quagga " * 200)
    data = prepare_corpus(mixture=[{"source": str(corpus)}, {"source": str(tmp_path / "other.txt")}])
    assert (unigram_loss(data, batches(data)), bigram_loss(data, batches(data))) == pytest.approx(
        obvious_losses(data), rel=1e-12
    )


@pytest.mark.parametrize("loss_fn", [unigram_loss, bigram_loss])
def test_losses_raise_when_nothing_is_held_out(prepare_corpus, loss_fn) -> None:
    data = prepare_corpus(held_out=0)
    with pytest.raises(DataError, match="there is no held-out text") as caught:
        loss_fn(data, batches(data))
    assert "data.held_out" in caught.value.hint


def test_losses_are_those_of_the_given_batches_when_they_are_a_part(prepare_corpus) -> None:
    data = prepare_corpus()
    every = batches(data, size=1)
    assert len(every) > 2
    for loss_fn in (unigram_loss, bigram_loss):
        each = [loss_fn(data, [batch]) for batch in every]
        assert loss_fn(data, every[:2]) == pytest.approx(sum(each[:2]) / 2, rel=1e-12)
        assert loss_fn(data, every[:2]) != pytest.approx(loss_fn(data, every), rel=1e-6)
