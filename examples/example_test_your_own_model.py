"""
Test your own model, and your own manifold
==========================================

Does a network have the symmetry that is claimed, is a measure as invariant as it says, is a Hessian
the right one? The laws that this package is tested by take anybody's models and manifolds, and name
what is wrong.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet import testing
from quotientnet.digits import load_digits, train

SEED = 0

# %%
# A network whose hidden units are products, trained on handwritten digits. ``conformance`` makes
# test cases of it, in a test file the argument of ``pytest.mark.parametrize``. Here they run one
# after the other.


class Gated(nn.Module):
    """Two linear layers on 4 × 4 pixels, the products of their units, and a third layer."""

    def __init__(self, width):
        super().__init__()
        self.value, self.gate = nn.Linear(16, width), nn.Linear(16, width)
        self.out = nn.Linear(width, 10)

    def forward(self, x):
        x = nn.functional.avg_pool2d(x.reshape(-1, 1, 8, 8), 2).flatten(1)
        return self.out(self.value(x) * self.gate(x))


torch.manual_seed(SEED)
network = Gated(4).double()
digits = load_digits(SEED)
train(network, digits, batch_size=128, epochs=3, seed=SEED)
data = (digits.train_inputs[:100], digits.train_targets[:100])
loss = nn.CrossEntropyLoss()


def outcome(case):
    """Whether a case holds."""
    try:
        return case.require().holds
    except AssertionError:
        return False


symmetry = qn.discover(network, data[0])
given = {"data": data, "loss": loss, "symmetry": symmetry}
cases = testing.conformance(network, data[0], measures=["minimum sharpness"], **given)
held = [case for case in cases if outcome(case)]
print(f"{len(held)} of {len(cases)} cases hold")

# %%
# A measure of one's own: the sum of the squared parameters, said to be invariant. It is not.

objective = qn.Objective(network, loss, data)
point = objective.at(objective.layout.flatten(network))


def decay(point, group):
    """Weight decay, with a claim."""
    return qn.Estimate(float(point.w @ point.w), 0.0, True, 0, ("unit scales",))


claimed = testing.check_invariance(decay, point, symmetry)
print(f"{claimed.law}: {claimed.reason}")

# %%
# A manifold of one's own, the node-wise quotient with two mistakes: the transport takes no notice
# of which representative of the target it is given, and the exponential map is the retraction.


class Hasty(qn.NodeWiseQuotient):
    """Two shortcuts."""

    def transp(self, x, y, v):
        return self.proju(y, v)

    def expmap(self, x, u, *, out=None):
        return self.retr(x, u, out=out)


broken = [v for v in testing.check_manifold(Hasty(symmetry)) if not v.holds]
for verdict in broken:
    size = verdict.slope or f"violated by {verdict.violation:.0e}"
    print(f"{verdict.law}: {size}")

# %%
# The Hessian. Along a geodesic the loss departs from its quadratic model as the cube of the step,
# if the Hessian is right; the flat one, without the connection's term, leaves a square. The network
# is trained but not at a critical point, where both would be the same.

manifold = qn.NodeWiseQuotient(symmetry)
scale = manifold.frame(point.w)
slopes = {}
for connection in ("levi-civita", "flat"):
    operator = manifold.riemannian_hessian(point, connection)
    verdicts = testing.check_derivatives(
        objective, manifold, point.w, hessian=lambda u: (operator @ (scale * u)) / scale
    )
    slopes[connection] = verdicts[-1].slope
    print(f"{connection}: {verdicts[-1].slope}")

# %%
# Where the fit was made, and what it was made of.

figure, (upper, lower) = plt.subplots(2, 1, figsize=(7, 7), layout="constrained")
for (name, slope), color in zip(slopes.items(), ("C0", "C3")):
    seen = [
        (step, error) for step, error in zip(slope.steps, slope.errors) if error > 0
    ]
    label = f"{name}: order {slope.order:.2f}"
    upper.loglog(*zip(*seen), ".-", color=color, label=label)
    upper.axvspan(*slope.window, color=color, alpha=0.15)
upper.axhline(slope.floor, color="k", linestyle=":", label="rounding")
upper.set_xlabel("step along the geodesic (units of the metric)")
upper.set_ylabel("loss less its quadratic\nmodel (units of the loss)")
upper.legend(title="Hessian; shaded: fitted", loc="upper left")
shown = broken[:12]
lower.barh(
    [v.law.replace("_", " ") for v in shown], [min(v.violation, 1e3) for v in shown]
)
lower.set_xscale("log")
lower.invert_yaxis()
lower.set_ylabel("law")
lower.set_xlabel("relative violation, or what is missing of an order")
lower.set_title("laws that the hasty manifold violates")

# %%
# All is as it should be: the model conforms, and each mistake is called by its name.

names = {verdict.law for verdict in broken}
assert len(held) == len(cases)
assert not claimed.holds and claimed.law == "measure_is_invariant"
assert {"transport_is_equivariant", "geodesics_have_critical_energy"} <= names
assert (
    abs(slopes["levi-civita"].order - 3) < 0.1 and abs(slopes["flat"].order - 2) < 0.1
)
