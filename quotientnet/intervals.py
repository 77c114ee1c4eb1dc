"""Intervals for what is measured on several networks: of means, and of rank correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan, sqrt
from statistics import mean, stdev

import numpy as np
from scipy.stats import t as student

from quotientnet.options import require_count, require_number

__all__ = ["RankCorrelation", "kendall_tau", "student_interval"]


def student_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float]:
    """The mean of independent values and the half width of its interval after Student.

    Args:
        values: At least one.
        confidence: How often such an interval has the expectation in it, for normal values.

    Returns:
        Mean and half width, which is NaN for a single value.

    Raises:
        ValueError: No values, or a confidence that is not between 0 and 1.

    Example:
        >>> centre, half = student_interval([1.0, 2.0, 3.0])
        >>> centre, round(half, 4)  # 4.3027 · 1/√3
        (2.0, 2.4841)
    """
    confidence = _share(confidence, "student_interval")
    if not len(values):
        raise ValueError("student_interval: needs at least one value")
    if len(values) == 1:
        return float(values[0]), nan
    quantile = student.ppf((1 + confidence) / 2, len(values) - 1)
    return float(mean(values)), float(quantile * stdev(values) / sqrt(len(values)))


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's τ with a bootstrap percentile interval.

    Attributes:
        tau: τ-b; NaN where all pairs are tied.
        low: The interval's lower end.
        high: Its upper end.
        confidence: Of the interval.
        pairs: How many pairs of networks are compared, tied ones included.
        resampled: τ-b of each resample, shape ``(resamples,)``.
    """

    tau: float
    low: float
    high: float
    confidence: float
    pairs: int
    resampled: np.ndarray = field(repr=False, compare=False)

    def less(self, other: RankCorrelation) -> tuple[float, float, float]:
        """This τ less another one on the same networks, and the ends of its interval.

        Both are resampled alike when they have the same levels, clusters, number of resamples and
        seed, so that what they share drops out.

        Raises:
            ValueError: Other pairs, another confidence or number of resamples.
        """
        same = (self.pairs, self.confidence, self.resampled.shape)
        if same != (other.pairs, other.confidence, other.resampled.shape):
            raise ValueError(
                "RankCorrelation.less: the other one has another number of pairs or resamples, or "
                "another confidence; make both on the same networks with the same options"
            )
        ends = _ends(self.resampled - other.resampled, self.confidence)
        return self.tau - other.tau, *ends


def kendall_tau(
    x: Sequence[float],
    y: Sequence[float],
    levels: Sequence | None = None,
    *,
    within: bool = False,
    clusters: Sequence | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> RankCorrelation:
    r"""Kendall's τ-b of two measurements on the same networks, and its bootstrap interval.

    .. math:: \tau_b = \frac{\sum \operatorname{sign}(x_i - x_j) \operatorname{sign}(y_i - y_j)}
              {\sqrt{\sum |\operatorname{sign}(x_i - x_j)| \sum |\operatorname{sign}(y_i - y_j)|}}

    over all pairs of networks, or over pairs of the same level. For the interval networks are drawn
    with replacement, as many of each level as there are; one that was drawn twice is tied with
    itself, which τ-b leaves out. Networks of one cluster are not independent, as those that grew
    from the same seed: then whole clusters are drawn, and pairs of the same cluster are not
    compared.

    Args:
        x: One number a network, such as its sharpness; infinities are larger than all numbers.
        y: Another, such as its generalisation gap.
        levels: Which networks were made alike, such as their share of random labels.
        within: Whether to compare only networks of the same level: what is left of a correlation
            when the level, which may decide both, is held fixed.
        clusters: Which networks are not independent, such as their seed.
        confidence: Of the interval.
        resamples: How often the networks are drawn.
        seed: Of the draws.

    Returns:
        τ-b and its interval, percentiles of the resamples in which τ-b is defined.

    Raises:
        ValueError: Different numbers of networks, levels or clusters, or fewer than two networks;
            NaN; ``within`` without levels; an option out of range.

    Note:
        Memory for four matrices of networks × networks.

    Example:
        >>> found = kendall_tau([1, 2, 3, 4], [1, 3, 2, 4])  # five pairs in order, one not
        >>> round(found.tau, 4), found.pairs
        (0.6667, 6)
    """
    x, y = _checked(x, y)
    if within and levels is None:
        raise ValueError("kendall_tau: within=True needs the networks' levels")
    levels = _labels(levels, len(x), "levels")
    confidence = _share(confidence, "kendall_tau")
    resamples = require_count(resamples, "kendall_tau", "resamples")
    generator = np.random.default_rng(seed)
    compared = levels[:, None] == levels if within else np.ones((len(x), len(x)), bool)
    if clusters is None:
        counts = _drawn(levels, resamples, generator)
    else:
        own = _labels(clusters, len(x), "clusters")
        compared &= own[:, None] != own
        every = np.zeros(own.max() + 1, int)
        counts = _drawn(every, resamples, generator)[:, own]
    terms = _terms(x, y, compared)
    resampled = _tau(counts, terms)
    tau = float(_tau(np.ones((1, len(x))), terms)[0])
    pairs = int(np.triu(compared, 1).sum())
    return RankCorrelation(
        tau, *_ends(resampled, confidence), confidence, pairs, resampled
    )


def _checked(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise ValueError(
            "kendall_tau: x and y must have one number for each of two or more networks, got "
            f"shapes {x.shape} and {y.shape}"
        )
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("kendall_tau: NaN has no rank; leave those networks out")
    return x, y


def _labels(given, size: int, name: str) -> np.ndarray:
    """Labels as integers from 0, all alike if there are none."""
    if given is None:
        return np.zeros(size, int)
    if len(given) != size:
        raise ValueError(
            f"kendall_tau: {len(given)} {name} for {size} networks; give one for each"
        )
    return np.unique(np.asarray(given), return_inverse=True)[1]


def _share(confidence: float, caller: str) -> float:
    return require_number(confidence, caller, "confidence", strict=True, below=1.0)


def _terms(x: np.ndarray, y: np.ndarray, compared: np.ndarray) -> list[np.ndarray]:
    """For each pair: whether it is in order, 1 or −1, and whether x and y tell it apart."""
    above, right = (
        compared * (np.greater.outer(v, v) * 1.0 - np.less.outer(v, v)) for v in (x, y)
    )
    return [above * right, abs(above), abs(right)]


def _tau(counts: np.ndarray, terms: list[np.ndarray]) -> np.ndarray:
    """τ-b where each network is there as often as counted; NaN where all pairs are tied."""
    order, *apart = (np.einsum("rn,rn->r", counts @ term, counts) for term in terms)
    with np.errstate(invalid="ignore", divide="ignore"):
        return order / np.sqrt(apart[0] * apart[1])


def _drawn(levels: np.ndarray, resamples: int, generator) -> np.ndarray:
    """How often each network is drawn in each resample, as often in all as its level has them."""
    counts = np.zeros((resamples, len(levels)))
    for level in np.unique(levels):
        own = np.flatnonzero(levels == level)
        shares = np.full(len(own), 1 / len(own))
        counts[:, own] = generator.multinomial(len(own), shares, size=resamples)
    return counts


def _ends(resampled: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentiles of what is defined."""
    known = resampled[~np.isnan(resampled)]
    if not len(known):
        return nan, nan
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
