"""
Write your own manifold in forty lines
======================================

One method makes a quotient: a frame ``d(x) > 0`` that shrinks as the group grows the weights.
Everything else, from the projection to the Riemannian Hessian, follows from it.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.testing import check_hessian, check_manifold

SEED = 0

# %%
# The papers measure a tensor by its Euclidean norm. Here is a metric that measures it by its
# 4-norm, which pays more attention to large weights.


class FourNormQuotient(qn.QuotientManifold):
    """Each tensor's coordinates are measured in units of its 4-norm."""

    def frame(self, x):
        norms = [
            part.pow(4).sum(-1, keepdim=True).pow(0.25) for part in self.layout.split(x)
        ]
        shapes = [part.shape for part in self.layout.split(x)]
        return torch.cat([(1 / n).expand(s) for n, s in zip(norms, shapes)], dim=-1)


torch.manual_seed(SEED)
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
layout = qn.ParameterLayout.from_module(model)
data = (torch.randn(20, 4).double(), torch.arange(20) % 3)
symmetry = qn.discover(model, data[0])
manifold = FourNormQuotient(symmetry.layer_scales)
print(manifold, "of dimension", manifold.dimension)

# %%
# The laws of :mod:`quotientnet.testing` tell whether the frame is equivariant and whether all
# that follows fits together. Laws on methods it does not have (a logarithm, a distance) are left
# out.

verdicts = check_manifold(manifold, seed=SEED)
objective = qn.Objective(model, nn.CrossEntropyLoss(), data)
verdicts += check_hessian(manifold, objective, layout.flatten(model))

# %%
# They can fail: a frame that does not follow the group is no metric of a quotient.


class Forgetful(qn.QuotientManifold):
    """The Euclidean metric, which sees the scales of layers."""

    def frame(self, x):
        return torch.ones_like(x)


wrong = check_manifold(Forgetful(manifold.group), seed=SEED)
broken = [verdict.law for verdict in wrong if not verdict.holds]
print("broken:", *broken, sep="\n    ")

# %%
# Each law against its tolerance.

measured = [verdict for verdict in verdicts if verdict.tolerance > 0]
figure, axis = plt.subplots(figsize=(7, 6), layout="constrained")
places = range(len(measured))
axis.barh(
    places, [max(v.violation, 1e-17) for v in measured], left=1e-18, label="violation"
)
axis.plot(
    [v.tolerance for v in measured], places, "k|", markersize=12, label="tolerance"
)
axis.set_xscale("log")
axis.set_xticks([10.0**power for power in range(-18, 0, 4)])
axis.set_yticks(places, [v.law.replace("_", " ") for v in measured], fontsize=9)
axis.set(xlabel="relative violation (no unit)", ylabel="law")
axis.legend()

assert all(verdict.holds for verdict in verdicts)
assert "metric_is_equivariant" in broken
