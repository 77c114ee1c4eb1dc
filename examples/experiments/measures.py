"""The measures that the experiments take at every network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

import quotientnet as qn
from quotientnet import sharpness
from quotientnet.losses import NormalisedCrossEntropy

EUCLIDEAN = "not invariant"
LAYERS = "invariant to layer scales"
UNITS = "invariant to unit scales"


@dataclass(frozen=True)
class Measured:
    """A network at one of its equivalent points, with its training data.

    Attributes:
        network: The network.
        data: Inputs and targets of the loss.
        symmetry: Of the network.
        w: The point.
    """

    network: nn.Module
    data: tuple[Tensor, Tensor]
    symmetry: qn.Symmetry
    w: Tensor

    @cached_property
    def point(self) -> qn.Point:
        """The cross-entropy at the point."""
        return self._objective(nn.CrossEntropyLoss()).at(self.w)

    @cached_property
    def surrogate(self) -> qn.Point:
        """The normalised cross-entropy, which sees neither shift nor scale of the logits."""
        return self._objective(NormalisedCrossEntropy()).at(self.w)

    def _objective(self, loss) -> qn.Objective:
        return qn.Objective(self.network, loss, self.data)


def _euclidean_trace(m: Measured) -> float:
    """Exact: in these networks every layer's block of the Gauss-Newton matrix is the Hessian's."""
    return qn.curvature.ggn_traces(m.point).total.value


def _largest(m: Measured) -> float:
    return sharpness.spectral_norm(m.point, which="algebraic").value


def _trace_on(quotient) -> Callable[[Measured], float]:
    return lambda m: sharpness.riemannian_trace(m.point, quotient(m.symmetry)).value


def _norm_on(quotient) -> Callable[[Measured], float]:
    def largest(m: Measured) -> float:
        return sharpness.riemannian_spectral_norm(m.point, quotient(m.symmetry)).value

    return largest


@torch.no_grad()
def _loss(m: Measured) -> float:
    return float(m.point.value)


MEASURES: dict[str, tuple[str, Callable[[Measured], float]]] = {
    "trace of the Hessian": (EUCLIDEAN, _euclidean_trace),
    "largest eigenvalue of the Hessian": (EUCLIDEAN, _largest),
    "layer-scale trace": (LAYERS, _trace_on(qn.LayerScaleQuotient)),
    "layer-scale spectral norm": (LAYERS, _norm_on(qn.LayerScaleQuotient)),
    "matrix-normalised sharpness": (
        LAYERS,
        lambda m: sharpness.matrix_normalised_sharpness(m.point).value,
    ),
    "minimum sharpness, layer scales": (
        LAYERS,
        lambda m: sharpness.minimum_sharpness(m.point, m.symmetry.layer_scales).value,
    ),
    "minimum sharpness": (
        UNITS,
        lambda m: sharpness.minimum_sharpness(m.point, m.symmetry).value,
    ),
    "normalised sharpness": (
        UNITS,
        lambda m: sharpness.normalised_sharpness(m.surrogate).value,
    ),
    "normalised sharpness, cross-entropy": (
        UNITS,
        lambda m: sharpness.normalised_sharpness(m.point).value,
    ),
    "node-wise trace": (UNITS, _trace_on(qn.NodeWiseQuotient)),
    "node-wise spectral norm": (UNITS, _norm_on(qn.NodeWiseQuotient)),
    "balanced trace": (UNITS, _trace_on(qn.BalancedQuotient)),
    "balanced spectral norm": (UNITS, _norm_on(qn.BalancedQuotient)),
    "Fisher–Rao norm": (UNITS, lambda m: sharpness.fisher_rao_norm(m.point).value),
    "squared norm of the weights": (EUCLIDEAN, lambda m: float(m.w.square().sum())),
    "squared norm, balanced": (
        UNITS,
        lambda m: float(qn.canonical(m.w, m.symmetry).square().sum()),
    ),
    "training loss": (UNITS, _loss),
}
"""What a measure is invariant to, and the measure. Paper by paper: the trace (5), matrix-
normalised (13) and normalised sharpness (17) of tsuzuku2019, the last with the loss (20) that the
paper takes and with the cross-entropy; minimum sharpness of ibayashi2021 for the layer scales of
the paper and for the scales of units; rangamani2019's quotients by layers and by nodes."""


def measured(at: Measured) -> dict[str, float]:
    """Every measure at a point."""
    return {name: function(at) for name, (_, function) in MEASURES.items()}
