"""The three inequalities of SE-MoE, worked by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.memory.tiers import Machine, TrainingSizes, count_largest_sparse, count_machines, plan_tiers

# 16 D = 1600; 4 a S / L = 100; 16 a S = 1600; 12 S = 2400.
SIZES = TrainingSizes(dense=100, sparse=200, num_layers=4, touched=0.5)
APART = Machine(memory=800, disk=600, device=340)
TOGETHER = Machine(memory=1650, disk=600)


def test_each_tier_takes_what_the_paper_says_when_the_device_has_memory_of_its_own() -> None:
    assert plan_tiers(SIZES, APART) == {"device": 1700, "memory": 1600, "disk": 2400}


def test_memory_takes_the_devices_share_too_when_processors_compute() -> None:
    assert plan_tiers(SIZES, TOGETHER) == {"memory": 3300, "disk": 2400}


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (APART, 5),  # 1700 / 340; memory asks for 2, disk for 4
        (replace(APART, device=10_000), 4),
        (replace(APART, device=10_000, disk=10_000), 2),
        (replace(APART, device=339), 6),
        (TOGETHER, 4),
        (Machine(3300, 2400), 1),
        (Machine(3299, 2400), 2),
        (Machine(10**9, 10**9, 10**9), 1),
    ],
)
def test_fewest_machines_are_counted_when_the_tightest_tier_decides(machine: Machine, expected: int) -> None:
    assert count_machines(SIZES, machine) == expected


@pytest.mark.parametrize(
    ("machine", "num_machines", "expected"),
    [
        (APART, 5, 200),  # 4 (1700 - 1600) / 2; memory would let 500, disk 250
        (APART, 4, 0),  # the dense core alone is too large
        (replace(APART, device=10**6), 4, 200),  # 2400 / 12
        (replace(APART, device=10**6, disk=10**6), 4, 400),  # 3200 / 8
        (Machine(3300, 10**6), 1, 200),  # (3300 - 1600) / (0.5 + 8)
        (Machine(1000, 10**6), 1, 0),
    ],
)
def test_most_expert_parameters_are_counted_when_machines_are_given(
    machine: Machine, num_machines: int, expected: int
) -> None:
    assert count_largest_sparse(SIZES, machine, num_machines) == expected


def test_optimizer_counts_when_it_keeps_one_moment() -> None:
    assert plan_tiers(replace(SIZES, state_bytes=12), APART) == {"device": 1300, "memory": 1200, "disk": 1600}


def test_dense_model_fits_as_it_is_when_it_has_no_experts() -> None:
    sizes = TrainingSizes(dense=100, sparse=0, num_layers=0, touched=1.0)
    assert plan_tiers(sizes, TOGETHER) == {"memory": 1600, "disk": 0}
    assert count_machines(sizes, TOGETHER) == 1


@given(
    dense=st.integers(0, 10**6),
    sparse=st.integers(1, 10**9),
    layers=st.integers(1, 100),
    touched=st.floats(0.01, 1),
    capacities=st.tuples(*[st.integers(10**4, 10**9)] * 2, st.none() | st.integers(10**4, 10**9)),
)
def test_largest_model_needs_no_more_machines_when_planned_for_them(
    dense: int, sparse: int, layers: int, touched: float, capacities: tuple[int, int, int | None]
) -> None:
    sizes, machine = TrainingSizes(dense, sparse, layers, touched), Machine(*capacities)
    num_machines = count_machines(sizes, machine)
    largest = count_largest_sparse(sizes, machine, num_machines)
    assert largest >= sparse * (1 - 1e-9) - 1
    assert count_machines(replace(sizes, sparse=int(largest * (1 - 1e-9))), machine) <= num_machines
    assert count_machines(replace(sizes, sparse=2 * largest + 2), machine) > num_machines
