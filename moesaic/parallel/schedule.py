"""How many chunks the tokens of each layer are cut into, and when gradients of dense parameters leave: pure arithmetic.

After FSMoE (Pan et al., 2025, "FSMoE"): every task costs alpha + beta w, links and experts work at the same time, and
what a number of chunks would take is predicted. There the cases have a formula each; here the tasks are laid out on the
links and on the processor in the order in which they are begun, which gives the same times and needs no cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moesaic.comm.cost import Cost

DEGREES = (1, 2, 4, 8)
# Messages that take less are not worth cutting.
_LEAST_S = 1e-3
_COMPUTE = "compute"


@dataclass(frozen=True)
class Costs:
    """What the slowest rank needs.

    Attributes:
        hops: of a message, by the bytes that a rank sends; those of two hops use different links.
        forward, backward: of a layer's experts on a rank, by routed pairs.
        reduce: of summing gradients over all ranks, by their bytes.
        overlap: the share of the shorter of both that vanishes when a message travels while experts compute. 1: they do
            not disturb each other; 0: the message takes the processor's time.
    """

    hops: tuple[Cost, ...]
    forward: Cost
    backward: Cost
    reduce: Cost
    overlap: float = 1.0


@dataclass(frozen=True)
class Layer:
    """The work of a mixture on a rank.

    Attributes:
        tokens: of the rank.
        message_bytes: that it sends, before the experts compute and after.
        pairs: rows that its experts compute.
        dense_pairs: that backward would have to take back through experts for as much work as it has from here to the
            mixture before.
        gradient_bytes: that are there to be summed when backward comes to this mixture, and were not at the one after.
    """

    tokens: int
    message_bytes: float
    pairs: float
    dense_pairs: float = 0.0
    gradient_bytes: int = 0


@dataclass(frozen=True)
class Schedule:
    """What is done, mixture by mixture from the first on.

    Attributes:
        degrees: chunks of tokens, in forward and backward.
        released_bytes: of gradients, that may leave when a mixture's last message for its experts has come in backward;
            None: all leave as soon as they are there.
    """

    degrees: tuple[int, ...]
    released_bytes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Task:
    """Work in one place, which does one thing at a time in the order of the tasks.

    Attributes:
        after: indices of tasks that must have ended.
    """

    place: str
    seconds: float
    after: tuple[int, ...] = ()


def lay_out(tasks: Sequence[Task]) -> list[float]:
    """Return when each task ends."""
    free: dict[str, float] = {}
    ends: list[float] = []
    for task in tasks:
        begin = max([free.get(task.place, 0.0), *(ends[index] for index in task.after)])
        ends.append(begin + task.seconds)
        free[task.place] = ends[-1]
    return ends


def pipeline(costs: Costs, layer: Layer, degree: int, backward: bool) -> list[Task]:
    """Return the tasks of a mixture: all chunks leave, experts compute each that has come, and each goes back."""
    hops = [(f"hop {index}", hop.seconds(layer.message_bytes / degree)) for index, hop in enumerate(costs.hops)]
    experts = costs.backward if backward else costs.forward
    tasks: list[Task] = []

    def follow(places: Sequence[tuple[str, float]], after: tuple[int, ...]) -> int:
        for place, seconds in places:
            tasks.append(Task(place, seconds, after))
            after = (len(tasks) - 1,)
        return len(tasks) - 1

    came = [follow(hops, ()) for _ in range(degree)]
    for index in came:
        computed = follow([(_COMPUTE, experts.seconds(layer.pairs / degree))], (index,))
        follow(hops[::-1], (computed,))
    return tasks


def predict(costs: Costs, layer: Layer, degree: int, backward: bool) -> float:
    """Return the seconds of a mixture in chunks."""
    tasks = pipeline(costs, layer, degree, backward)
    return _disturbed(costs, tasks)


def choose_degree(costs: Costs, layer: Layer) -> int:
    """Return the number of chunks with which forward and backward together are shortest, the least of equal ones."""
    if sum(hop.seconds(layer.message_bytes) for hop in costs.hops) < _LEAST_S:
        return 1
    possible = [degree for degree in DEGREES if degree == 1 or degree <= layer.tokens]
    return min(possible, key=lambda degree: sum(predict(costs, layer, degree, each) for each in (False, True)))


def plan_gradients(costs: Costs, layers: Sequence[Layer], degrees: Sequence[int]) -> tuple[int, ...]:
    """Return for each mixture how many bytes of gradients fit where its links idle, until the mixture before begins.

    Never more than what waits by then; what is left leaves after all.
    """
    waiting, planned = 0, [0] * len(layers)
    for index in reversed(range(len(layers))):
        layer, degree = layers[index], degrees[index]
        waiting += layer.gradient_bytes
        tasks = pipeline(costs, layer, degree, backward=True)
        last = f"hop {len(costs.hops) - 1}"
        busy = sum(task.seconds for task in tasks if task.place == last)
        idle = _disturbed(costs, tasks) - busy + _dense_s(costs, layer)
        planned[index] = int(min(waiting, costs.reduce.work(idle)))
        waiting -= planned[index]
    return tuple(planned)


def predict_backward(costs: Costs, layers: Sequence[Layer], schedule: Schedule, bucket_bytes: int = 1) -> float:
    """Return the seconds from the last mixture's backward until all gradients are summed.

    Args:
        bucket_bytes: of gradients that leave together, or not at all; what fills none leaves after backward.
    """
    last = f"hop {len(costs.hops) - 1}"
    tasks: list[Task] = []
    after: tuple[int, ...] = ()
    left = released = 0
    for index in reversed(range(len(layers))):
        layer, degree = layers[index], schedule.degrees[index]
        left += layer.gradient_bytes
        held = schedule.released_bytes
        full = left // bucket_bytes * bucket_bytes
        released += full if held is None else held[index]
        leaving = min(full, released // bucket_bytes * bucket_bytes)
        # What no full bucket has waited for is lost, as in `SharedGradients.release`.
        released = released - leaving if leaving < full else 0
        message = Task(last, costs.reduce.seconds(leaving), after)
        own = pipeline(costs, layer, degree, backward=True)
        # At once, before the messages of the mixture; or after those that its experts wait for.
        place = 0 if held is None else degree * len(costs.hops)
        own = [*own[:place], message, *own[place:]]
        start = len(tasks)
        tasks += [
            replace(task, after=tuple(_moved(each, place) + start for each in task.after) or after)
            if task is not message
            else task
            for task in own
        ]
        tasks.append(
            Task(_COMPUTE, _dense_s(costs, layer), tuple(i for i in range(start, len(tasks)) if i != start + place))
        )
        after = (len(tasks) - 1,)
        left -= leaving
    tasks.append(Task(last, costs.reduce.seconds(left), after))
    return _disturbed(costs, tasks)


def choose_schedule(costs: Costs, layers: Sequence[Layer], bucket_bytes: int = 1) -> Schedule:
    """Return the degrees of all mixtures, and whether gradients wait for idle links.

    They do where that promises an earlier end, and no layer is computed whole: one that is tells of no idle link.

    Args:
        bucket_bytes: as for `predict_backward`.
    """
    degrees = tuple(choose_degree(costs, layer) for layer in layers)
    at_once = Schedule(degrees)
    if not layers or min(degrees) == 1:
        return at_once
    held = Schedule(degrees, plan_gradients(costs, layers, degrees))
    return min(at_once, held, key=lambda each: predict_backward(costs, layers, each, bucket_bytes))


def _dense_s(costs: Costs, layer: Layer) -> float:
    return costs.backward.beta_s * layer.dense_pairs


def _moved(index: int, place: int) -> int:
    """Return a task's index after one was put in before it."""
    return index + (index >= place)


def _disturbed(costs: Costs, tasks: Sequence[Task]) -> float:
    """Return the end of tasks whose places disturb each other."""
    free, one_by_one = max(lay_out(tasks)), sum(task.seconds for task in tasks)
    return free + (1 - costs.overlap) * (one_by_one - free)
