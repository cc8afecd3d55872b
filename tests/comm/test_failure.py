"""What is said when a rank fails, or another one does."""

import pytest

from moesaic.comm import failure
from moesaic.comm.failure import name_rank
from moesaic.comm.world import ALONE, World
from moesaic.errors import ConfigError, ParallelError

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:31337"


def test_error_names_its_rank_when_there_are_others() -> None:
    with pytest.raises(ConfigError, match=r"^rank 2: no such file$") as caught, name_rank(World(2, 4)):
        raise ConfigError("no such file", "make one")
    assert caught.value.hint == "make one"
    with pytest.raises(ConfigError, match=r"^no such file$"), name_rank(ALONE):
        raise ConfigError("no such file")


@pytest.mark.parametrize(
    ("silent", "told"),
    [
        ([3], "rank 0: rank 3 ended or did not answer in time"),
        ([1, 2], "rank 0: rank 1, 2 ended or did not answer in time"),
        (list(range(1, 12)), "rank 0: rank 1, 2, 3, 4, 5, 6, 7, 8 and 3 more ended"),
        ([], "rank 0: another rank ended or did not answer in time"),
    ],
)
def test_others_are_named_when_they_do_not_answer(
    silent: list[int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure, "_who_is_silent", lambda world: silent)
    with pytest.raises(ParallelError, match=told) as caught, name_rank(World(0, 12)):
        raise RuntimeError(GLOO)
    assert "parallel.timeout_s" in caught.value.hint


def test_nobody_is_named_when_there_is_no_store_to_report_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ParallelError, match="another rank ended"), name_rank(World(0, 2)):
        raise RuntimeError("Timed out waiting 3000ms for recv operation to complete")


@pytest.mark.parametrize(("world", "text"), [(World(0, 2), "shapes differ"), (ALONE, GLOO)])
def test_failure_stays_what_it_is_when_it_is_no_other_ranks(world: World, text: str) -> None:
    with pytest.raises(RuntimeError) as caught, name_rank(world):
        raise RuntimeError(text)
    assert str(caught.value) == text
