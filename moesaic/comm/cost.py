"""What work costs on this machine: a fixed part and one that grows with the work, fitted to measurements."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Seconds as a line over the work: t = alpha + beta w.

    Attributes:
        alpha_s: of any work, however little.
        beta_s: of each unit, such as a byte or a row.
        error: of the fit, the root of the mean square of relative differences; 0.1 is a tenth.
    """

    alpha_s: float
    beta_s: float
    error: float = 0.0

    def seconds(self, work: float) -> float:
        """Return what so much work takes; none takes nothing."""
        return self.alpha_s + self.beta_s * work if work > 0 else 0.0

    def work(self, seconds: float) -> float:
        """Return how much is done in a time; at most what is finite."""
        return max(0.0, seconds - self.alpha_s) / max(self.beta_s, 1e-15)


def fit_cost(points: Sequence[tuple[float, float]]) -> Cost:
    """Fit a line to (work, seconds) by least squares of relative differences; neither part is negative.

    Relative ones, or the largest work alone would decide, and nothing be known of the fixed part.
    """
    # The unknowns are alpha and beta in (alpha + beta w) / t = 1.
    rows = [(1 / seconds, work / seconds) for work, seconds in points]
    aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(row[i] for row in rows) for i in (0, 1))
    determinant = aa * bb - ab * ab
    alpha, beta = 0.0, b / bb if bb else 0.0
    if determinant > 1e-9 * aa * bb:
        alpha, beta = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
        if alpha < 0:
            alpha, beta = 0.0, b / bb
        elif beta < 0:
            alpha, beta = a / aa, 0.0
    error = (sum((alpha * one + beta * each - 1) ** 2 for one, each in rows) / len(rows)) ** 0.5
    return Cost(alpha, beta, error)
