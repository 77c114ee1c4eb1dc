"""The theorems of yi2019 about BN-sharpness, corrected, as inequalities that can be checked."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt

from quotientnet.options import require_count, require_number
from quotientnet.sharpness.arguments import checked_power, checked_radius

__all__ = [
    "Inequality",
    "ball_bound",
    "power_bound",
    "trace_bound",
    "generalisation_bound",
]


@dataclass(frozen=True)
class Inequality:
    """``left ≤ right``.

    Attributes:
        statement: What is said of what.
        left: The smaller side.
        right: The larger side.
    """

    statement: str
    left: float
    right: float

    @property
    def slack(self) -> float:
        """``right − left``: not negative if the inequality holds."""
        return self.right - self.left

    def holds(self, tolerance: float = 1e-9) -> bool:
        """Whether it does, up to a relative rounding."""
        return self.slack >= -tolerance * max(abs(self.left), abs(self.right))


def ball_bound(
    bn_sharpness: float, largest_change: float, p: float, delta: float
) -> Inequality:
    r"""Theorem A.2 of [Yi2019]_: :math:`2^{-1/p} \delta \|f\|_p^{\delta, w} \leq
    \max_{\|w' - w\| \leq \delta \|\phi(w)\|} |f(w') - f(w)|`.

    The right side is the supremum that Theorem A.1 identifies with the essential one, so that any
    value attained in the ball makes a sound right side only if the inequality holds with it.

    Args:
        bn_sharpness: :math:`\|f\|_p^{\delta, w}`.
        largest_change: The maximum over the ball of radius
            :math:`\delta \|\phi(w)\|`, where :math:`\|\phi(w)\|^2 = 1 + \sum_i \|w_i\|^2`.
        p: At least 1.
        delta: ``δ``.

    Raises:
        TypeError: No number.
        ValueError: One that is NaN, infinite or out of its range.
    """
    checked_power(p, "ball_bound")
    checked_radius(delta, "ball_bound", "delta")
    require_number(bn_sharpness, "ball_bound", "bn_sharpness")
    require_number(largest_change, "ball_bound", "largest_change")
    left = 2 ** (-1 / p) * delta * bn_sharpness
    return Inequality("yi2019 Theorem A.2", left, largest_change)


def power_bound(lower: float, upper: float, p: float, q: float) -> Inequality:
    r"""Theorem A.3 of [Yi2019]_, corrected: :math:`\|f\|_p \leq 2^{1/p - 1/q} \|f\|_q` for
    :math:`p < q`.

    Eq. (23) prints the factor :math:`(2 \delta)^{1/p - 1/q}`, which a linear loss violates for
    small ``δ``.

    Args:
        lower: The BN-sharpness of exponent ``p``.
        upper: That of exponent ``q``, at the same ``δ``.
        p: At least 1.
        q: Above ``p``.

    Raises:
        TypeError: No number.
        ValueError: One that is NaN, infinite or out of its range.
    """
    checked_power(p, "power_bound")
    require_number(q, "power_bound", "q", least=p, strict=True)
    require_number(lower, "power_bound", "lower")
    require_number(upper, "power_bound", "upper")
    factor = 2 ** (1 / p - 1 / q)
    return Inequality("yi2019 Theorem A.3, corrected", lower, factor * upper)


def trace_bound(
    bn_sharpness: float, trace: float, direction_norm: float, p: float, delta: float
) -> Inequality:
    r"""Theorem B.2 of [Yi2019]_, corrected: at a minimum, to second order in ``δ``,

    .. math:: \|f\|_p^{\delta, w} \leq \tfrac{\delta}{2} \left(\frac{2}{2p+1}\right)^{1/p}
              \|\phi(w)\|^2 \operatorname{tr} H

    Eq. (27) prints the opposite sign, and (27)–(29) leave out the half.

    Args:
        bn_sharpness: :math:`\|f\|_p^{\delta, w}` at a minimum.
        trace: :math:`\operatorname{tr} H`; the largest eigenvalue makes a sharper bound.
        direction_norm: :math:`\|\phi(w)\|`, the length of every direction.
        p: At least 1.
        delta: ``δ``.

    Raises:
        TypeError: No number.
        ValueError: One that is NaN, infinite or out of its range.
    """
    checked_power(p, "trace_bound")
    checked_radius(delta, "trace_bound", "delta")
    require_number(bn_sharpness, "trace_bound", "bn_sharpness")
    require_number(trace, "trace_bound", "trace", least=-inf)
    require_number(direction_norm, "trace_bound", "direction_norm")
    factor = delta / 2 * (2 / (2 * p + 1)) ** (1 / p)
    right = factor * direction_norm * direction_norm * trace if trace else 0.0
    return Inequality("yi2019 Theorem B.2, corrected", bn_sharpness, right)


def generalisation_bound(
    bn_sharpness: float,
    p: float,
    delta: float,
    *,
    divergence: float,
    samples: int,
    confidence: float,
) -> float:
    r"""The right side of Theorem 3.3 of [Yi2019]_, corrected:

    .. math:: 2^{-1/p} \delta \|f\|_p^{\delta, w}
              + 4 \sqrt{\tfrac{1}{m} \left(\mathrm{KL} + \log \tfrac{2m}{\varepsilon}\right)}

    Eq. (10) prints :math:`\delta^{1 + 1/p}`. The theorem is about a posterior that is uniform on a
    segment, of which the divergence from any prior with a density is infinite: the bound then is,
    too.

    Args:
        bn_sharpness: :math:`\|f\|_p^{\delta, w}`.
        p: At least 1.
        delta: ``δ``.
        divergence: KL of posterior and prior, in nats; may be infinite.
        samples: ``m``.
        confidence: ``ε``, in (0, 1).

    Raises:
        ValueError: A number out of its range.
    """
    checked_power(p, "generalisation_bound")
    checked_radius(delta, "generalisation_bound", "delta")
    caller = "generalisation_bound"
    require_number(bn_sharpness, caller, "bn_sharpness")
    infinite = isinstance(divergence, float) and divergence == inf
    if not infinite:  # that of a segment from a density is
        require_number(divergence, caller, "divergence")
    require_count(samples, caller, "samples")
    require_number(confidence, caller, "confidence", strict=True, below=1.0)
    spread = 4 * sqrt((divergence + log(2 * samples) - log(confidence)) / samples)
    return 2 ** (-1 / p) * delta * bn_sharpness + spread
