"""One measured quantity over the steps of a run, smoothed and thinned for a chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any


@dataclass(frozen=True)
class Series:
    """Finite values and the steps they were measured at, in order."""

    steps: Sequence[int]
    values: Sequence[float]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def last(self) -> float:
        """The value of the last step."""
        return self.values[-1]


def read_series(rows: list[dict[str, Any]], key: str) -> Series:
    """Collect what the rows hold under a key, leaving out rows without a finite number there."""
    found = [(row["step"], float(row[key])) for row in rows if row.get(key) is not None]
    finite = [(step, value) for step, value in found if math.isfinite(value)]
    return Series([step for step, _ in finite], [value for _, value in finite])


def smoothing_reach(num_points: int) -> int:
    """Return how many points each side of a point are averaged with it: a sixtieth of the run."""
    return num_points // 60


def smooth(series: Series) -> Series:
    """Replace each value by the mean of the points within reach.

    The window is centred, so the curve does not lag behind a falling loss; at either end it is cut off,
    so the last value is the mean of the last `reach + 1` points.
    """
    reach = smoothing_reach(len(series))
    sums = [0.0, *accumulate(series.values)]
    means = []
    for index in range(len(series)):
        start, stop = max(0, index - reach), min(len(series), index + reach + 1)
        means.append((sums[stop] - sums[start]) / (stop - start))
    return Series(series.steps, means)


def thin(series: Series, max_points: int) -> Series:
    """Keep at most `max_points` points: the first, the last, and the extremes of equal stretches between.

    Keeping the extremes, and not every n-th point, keeps each spike visible.
    """
    if len(series) <= max_points:
        return series
    last = len(series) - 1
    num_stretches = (max_points - 2) // 2
    kept = {0, last}
    for index in range(num_stretches):
        stretch = range(last * index // num_stretches, last * (index + 1) // num_stretches)
        kept.add(min(stretch, key=series.values.__getitem__))
        kept.add(max(stretch, key=series.values.__getitem__))
    order = sorted(kept)
    return Series([series.steps[i] for i in order], [series.values[i] for i in order])
