"""The PAC-Bayesian terms from which normalised sharpness comes, corrected (tsuzuku2019)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, log, sqrt

from quotientnet.curvature.scales import finite
from quotientnet.estimate import Estimate
from quotientnet.losses import output_invariances
from quotientnet.options import require_count, require_number
from quotientnet.point import require_point
from quotientnet.sharpness.curvatures import parameters_of, traces_of

__all__ = ["PacBayesTerms", "pac_bayes_terms", "gaussian_divergence"]


@dataclass(frozen=True, kw_only=True)
class PacBayesTerms(Estimate):
    r"""The bound (4) to second order, and its terms.

    Attributes:
        empirical: The loss at the point, :math:`\mathcal L_S(f)`.
        noise: What noise adds to it, term (C):
            :math:`\sum_l \tfrac{1}{2} \sigma_l^2 \operatorname{tr} H_l`.
        divergence: Term (B) times λ, :math:`\sum_l \|W_l\|^2/(2 \sigma_l^2)`: the divergence from a
            prior of the posterior's variances.
        confidence: :math:`\ln(1/\delta)`.
        deviation: The bound :math:`\lambda^2/(2m)` of Ψ.
        lambda_: λ.
        variances: :math:`\sigma_l^2`, by name; infinite without curvature.
    """

    empirical: float
    noise: float
    divergence: float
    confidence: float
    deviation: float
    lambda_: float
    variances: dict[str, float]


def pac_bayes_terms(
    point, *, samples: int, delta: float = 0.05, lambda_: float | None = None,
    curvature="hessian", biases: bool = False,
) -> PacBayesTerms:  # fmt: skip
    r"""The PAC-Bayesian bound at the best variance for each matrix, to second order.

    .. math:: \mathcal L_S(f) + \sum_l \tfrac{1}{2} \sigma_l^2 H_l + \frac1\lambda \left(\sum_l
              \frac{\|W_l\|^2}{2 \sigma_l^2} + \ln \frac1\delta + \frac{\lambda^2}{2m}\right),
              \qquad \sigma_l^2 = \sqrt{\frac{\|W_l\|^2}{\lambda H_l}}

    Eqs. (1)–(12) of [Tsuzuku2019]_ with the traces :math:`H_l`, 0 where they are negative, and the
    factor ½ of the second order, which (5) lost. Both sums are :math:`\tfrac{1}{2} \lambda^{-1/2}`
    times :func:`matrix_normalised_sharpness`. No certificate: it is of second order, leaves out
    term (A) and the constant for choosing variances afterwards, takes the loss for a 0-1 loss, and
    λ has to be chosen before the data are seen. (Hoeffding's lemma gives :math:`\lambda^2/(8m)`;
    the paper's larger bound is kept.)

    Args:
        point: A :class:`~quotientnet.Point`.
        samples: ``m``, the number of training samples.
        delta: δ, the probability that the bound fails.
        lambda_: λ; by default :math:`\sqrt{2 m \ln(1/\delta)}`, which is best for the terms
            without the network.
        curvature: As in :func:`matrix_normalised_sharpness`.
        biases: As in :func:`matrix_normalised_sharpness`.

    Returns:
        The bound as ``value``, and its terms; of the loss's unit, invariant to layer scales; their
        error is that of the traces.

    Raises:
        TypeError: ``point`` is none.
        ValueError: No samples, δ outside (0, 1], λ that is not positive.

    Example:
        >>> import torch, quotientnet as qn
        >>> data = torch.tensor([[3.0, 4.0]]).double(), torch.zeros(1, 1).double()
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> point = qn.Objective(model, torch.nn.MSELoss(), data).at(torch.ones(2).double())
        >>> found = qn.sharpness.pac_bayes_terms(point, samples=100, lambda_=4.0)
        >>> round(found.noise, 9), round(found.divergence / 4, 9)  # √(2 · 50) / (2 √4)
        (2.5, 2.5)
    """
    caller = "pac_bayes_terms"
    require_point(point, caller)
    require_count(samples, caller, "samples")
    require_number(delta, caller, "delta", most=1.0, strict=True)
    if lambda_ is None:
        lambda_ = sqrt(2 * samples * -log(delta)) or 1.0
    require_number(lambda_, caller, "lambda_", strict=True)
    traces, variances, products = traces_of(point, curvature, caller), {}, []
    errors, counted = [], []
    for entry in parameters_of(point):
        if biases or len(entry.shape) > 1:
            squares = float(point.w[entry.slice].double().square().sum())
            trace = max(traces[entry.name].value, 0.0)
            ratio = squares / (lambda_ * trace) if trace else inf
            variances[entry.name] = sqrt(ratio) if squares else 0.0
            products.append(sqrt(squares * trace))
            root, own = sqrt(trace), traces[entry.name].error
            errors.append(sqrt(squares) * (own / (2 * root) if root else sqrt(own)))
            counted.append(traces[entry.name].converged)
    noise, empirical = sum(products) / (2 * sqrt(lambda_)), float(point.value)
    divergence, confidence, deviation = (
        noise * lambda_,
        -log(delta),
        lambda_**2 / (2 * samples),
    )
    value = empirical + noise + (divergence + confidence + deviation) / lambda_
    finite(value, caller)
    cost = max(trace.cost for trace in traces.values())
    error = sum(e**2 for e in errors) ** 0.5 / sqrt(
        lambda_
    )  # of the noise and the divergence
    invariant_to = ("layer scales", *output_invariances(point.objective.loss))
    if biases:
        invariant_to = tuple(name for name in invariant_to if name != "output shift")
    return PacBayesTerms(
        value, error, all(counted), cost, invariant_to, empirical=empirical, noise=noise,
        divergence=divergence, confidence=confidence, deviation=deviation, lambda_=lambda_,
        variances=variances,
    )  # fmt: skip


def gaussian_divergence(
    squares: float, entries: int, posterior: float, prior: float
) -> float:
    r"""The divergence of a matrix's posterior from its prior, both isotropic normal.

    .. math:: d \ln \frac{\sigma_P}{\sigma_Q}
              + \frac{\|W\|^2 + d\, \sigma_Q^2}{2 \sigma_P^2} - \frac d2

    Eq. (6) of [Tsuzuku2019]_, corrected: the logarithm and :math:`\sigma_Q^2` count for each of the
    ``d`` entries. It is least at :math:`\sigma_P^2 = \sigma_Q^2 + \|W\|^2/d`, not at
    :math:`\sigma_P = \sigma_Q`.

    Args:
        squares: :math:`\|W\|^2`.
        entries: ``d``.
        posterior: :math:`\sigma_Q^2`.
        prior: :math:`\sigma_P^2`.

    Raises:
        ValueError: A variance that is not positive, or no entries.

    Example:
        >>> gaussian_divergence(8.0, 4, 1.0, 1.0)
        4.0
    """
    caller = "gaussian_divergence"
    require_number(squares, caller, "squares")
    require_count(entries, caller, "entries")
    require_number(posterior, caller, "posterior", strict=True)
    require_number(prior, caller, "prior", strict=True)
    weight = (squares + entries * posterior) / (2 * prior)
    return entries / 2 * log(prior / posterior) + weight - entries / 2
