"""Replay of traces worked out by hand, the optimum that none beats, and files that are no traces."""

import json
import random
from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesaic.errors import ConfigError, DataError
from moesaic.memory.policy import POLICIES
from moesaic.memory.replay import Belady, Trace, read_trace, replay

# One layer of four experts; of each step, a few.
STEPS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True), min_size=1, max_size=9)


def _one_layer(*steps: list[int]) -> Trace:
    return [[experts] for experts in steps]


@pytest.mark.parametrize(
    ("policy", "num_hits"),
    [
        ("lru", 2),  # pages 0, 01, 01 hit, 02, 12, 12 hit
        ("lfu", 1),  # pages 0, 01, 01 hit, 02, 01, 02
        ("decayed", 1),  # as lfu
        ("hits", 1),  # as lfu
        ("belady", 3),  # pages 0, 01, 01 hit, 12, 12 hit, 12 hit
    ],
)
def test_hit_rate_is_that_counted_by_hand_when_a_step_uses_one_expert(policy: str, num_hits: int) -> None:
    assert replay(_one_layer([0], [1], [0], [2], [1], [2]), 3, 2, policy) == num_hits / 6


def test_first_uses_are_misses_when_the_cache_is_empty() -> None:
    assert replay(_one_layer([0, 1], [0, 1]), 2, 2, "lru") == 2 / 4


def test_no_page_of_a_step_leaves_for_another_of_it_when_it_is_worth_least() -> None:
    # For 2, not 1, which is not used again, but 0 leaves.
    assert replay(_one_layer([0, 1], [1, 2], [0, 2]), 3, 2, "belady") == 2 / 6


@pytest.mark.parametrize(("capacity", "num_hits"), [(0, 0), (1, 2), (2, 5)])
def test_what_finds_no_room_passes_through_when_a_step_needs_more(capacity: int, num_hits: int) -> None:
    # With room for one: 0 stays and is hit, 1 takes its place and is hit; the second of a step never stays.
    assert replay(_one_layer([0, 1], [1, 0], [1, 2], [1, 2]), 3, capacity, "lru") == num_hits / 8


def test_layers_have_pages_of_their_own_when_there_are_several() -> None:
    assert replay([[[0], [1]], [[0], [1]], [[0], [2]]], 3, 1, "lru") == 3 / 6


def test_policy_is_told_all_that_happens_when_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []

    class Spy:
        def __getattr__(self, name: str) -> Callable[..., int]:
            return lambda *given: told.append((name, *given)) or 0

    monkeypatch.setitem(POLICIES, "spy", Spy)
    replay(_one_layer([1, 0], [1, 2]), 3, 2, "spy")
    assert told == [
        *[("step",), ("use", 1), ("use", 0), ("add", 1), ("add", 0)],
        *[("step",), ("use", 1), ("use", 2), ("victim", {0}), ("remove", 0), ("add", 2)],
    ]


def test_belady_looks_beyond_the_present_step_when_asked() -> None:
    belady = Belady([[0, 1], [0], [1]])
    belady.step()
    assert belady.victim([0, 1]) == 1
    belady.step()
    assert belady.victim([0, 1]) == 0


def test_replay_passes_options_on_when_the_policy_has_some() -> None:
    trace = _one_layer([0], [0], [1], [2], [0], [1])
    assert replay(trace, 3, 2, "decayed", decay=1.0) == 2 / 6
    assert replay(trace, 3, 2, "decayed", decay=0.1) == 1 / 6


def _most_hits(steps: list[list[int]], capacity: int) -> int:
    """Try every way to keep pages."""

    @cache
    def most(index: int, resident: frozenset[int]) -> int:
        if index == len(steps):
            return 0
        needed = frozenset(steps[index])
        others = resident - needed
        num_kept = min(len(others), capacity - len(needed))
        ways = [needed.union(kept) for kept in combinations(sorted(others), num_kept)]
        return len(resident & needed) + max(most(index + 1, way) for way in ways)

    return most(0, frozenset())


@settings(max_examples=100)
@given(steps=STEPS)
def test_belady_has_the_most_hits_there_can_be_when_a_step_fits(steps: list[list[int]]) -> None:
    num_uses = sum(map(len, steps))
    assert replay(_one_layer(*steps), 4, 3, "belady") == _most_hits(steps, 3) / num_uses


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=100)
@given(steps=STEPS, capacity=st.integers(3, 4))
def test_belady_is_never_worse_when_a_step_fits(name: str, steps: list[list[int]], capacity: int) -> None:
    trace = _one_layer(*steps)
    assert replay(trace, 4, capacity, name) <= replay(trace, 4, capacity, "belady")


def _wandering(num_tokens: int, num_experts: int, num_chosen: int) -> Trace:
    """Make up a layer's choices: a token keeps some of the former one's, and takes the others by their popularity."""
    rng = random.Random(0)
    chosen: list[int] = []
    trace = []
    for _ in range(num_tokens):
        chosen = [expert for expert in chosen if rng.random() < 0.3]
        while len(chosen) < num_chosen:
            expert = min(rng.randrange(num_experts) for _ in range(3))
            if expert not in chosen:
                chosen.append(expert)
        trace.append([sorted(chosen)])
    return trace


def test_decayed_finds_more_than_lru_when_some_experts_are_popular() -> None:
    trace = _wandering(300, 32, 4)
    assert replay(trace, 32, 8, "lru") + 0.03 < replay(trace, 32, 8, "decayed") < replay(trace, 32, 8, "belady")


def test_decayed_finds_more_than_lfu_when_other_experts_become_popular() -> None:
    trace = _wandering(100, 32, 4)
    trace = [*trace, *([[31 - expert for expert in experts] for experts in layers] for layers in trace)]
    assert replay(trace, 32, 8, "lfu") + 0.03 < replay(trace, 32, 8, "decayed")


@pytest.mark.parametrize("name", [*POLICIES, "belady"])
def test_all_but_first_uses_are_hits_when_every_page_fits(name: str) -> None:
    trace = _wandering(50, 8, 2)
    num_first = len({expert for layers in trace for expert in layers[0]})
    assert replay(trace, 8, 8, name) == (100 - num_first) / 100


def test_replay_is_refused_when_the_policy_is_unknown() -> None:
    with pytest.raises(ConfigError, match="unknown cache policy 'fifo'"):
        replay(_one_layer([0]), 1, 1, "fifo")


def test_replay_is_refused_when_the_capacity_is_negative() -> None:
    with pytest.raises(ConfigError, match="cannot replay with room for -1 pages") as caught:
        replay(_one_layer([0]), 1, -1, "lru")
    assert caught.value.hint == "capacity must be 0 or more"


@pytest.mark.parametrize("trace", [[], [[]], [[[]], [[]]]])
def test_replay_is_refused_when_no_expert_is_used(trace: Trace) -> None:
    with pytest.raises(DataError, match="cannot replay a trace in which no expert is used") as caught:
        replay(trace, 1, 1, "lru")
    assert caught.value.hint == "record some tokens"


@pytest.mark.parametrize("expert", [4, -1])
def test_replay_is_refused_when_an_expert_is_out_of_range(expert: int) -> None:
    with pytest.raises(DataError, match=f"the trace uses expert {expert}") as caught:
        replay(_one_layer([0], [expert]), 4, 1, "lru")
    assert caught.value.hint == "ids must lie within 0..3"


def test_trace_is_the_one_written_when_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    trace = [[[1, 2], [0]], [[3, 0], []]]
    path.write_text("\n".join(json.dumps({"tok": 5 + token, "layers": layers}) for token, layers in enumerate(trace)))
    assert read_trace(path) == trace


GOOD = b'{"tok": 1, "layers": [[0], [1]]}'


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"tok": 2, "layers": [[0], [1]]', "is not JSON"),
        (b"", "is not JSON"),
        (b'{"tok": "\xff"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[[0], [1]]", "has no list of 'layers'"),
        (b'{"tok": 2}', "has no list of 'layers'"),
        (b'{"layers": 3}', "has no list of 'layers'"),
        (b'{"layers": []}', "has no list of 'layers'"),
        (b'{"layers": [[0]]}', "has 1 layers, those before it have 2"),
        (b'{"layers": [[0], 1]}', "has in layer 1 no list of different expert ids"),
        (b'{"layers": [[0], [1, 1]]}', "has in layer 1 no list of different expert ids"),
        (b'{"layers": [[-1], [1]]}', "has in layer 0 no list of different expert ids"),
        (b'{"layers": [[1.0], [1]]}', "has in layer 0 no list of different expert ids"),
        (b'{"layers": [[true], [1]]}', "has in layer 0 no list of different expert ids"),
        (b'{"layers": [["0"], [1]]}', "has in layer 0 no list of different expert ids"),
    ],
)
def test_trace_is_refused_when_a_line_is_no_token(line: bytes, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        read_trace(path)
    assert caught.value.text == f"line 2 of trace '{path}' {fault}"
    assert caught.value.hint == (
        'a line is one token, such as {"tok": 1, "layers": [[0, 7], [3, 5]]}: the experts that each layer chose'
    )


def test_trace_is_refused_when_it_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.touch()
    with pytest.raises(DataError) as caught:
        read_trace(path)
    assert caught.value.text == f"trace '{path}' is empty"
    assert caught.value.hint.startswith("a line is one token")


def test_trace_is_refused_when_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*absent.jsonl': No such file") as caught:
        read_trace(tmp_path / "absent.jsonl")
    assert caught.value.hint == "check the path and its permissions"
