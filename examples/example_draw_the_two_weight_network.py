"""
Draw the two-weight network
===========================

One input, one hidden unit, one output: a network with two weights, whose parameters are a plane and
whose symmetry can be seen (Figure 2 of [Dinh2017]_). What do the quotient's metrics measure there?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import quotientnet as qn
from quotientnet.digits import load_digits

SEED = 0

# %%
# The network predicts the ink in the lower half of a handwritten digit from that in its upper half,
# ``w2 relu(w1 x)``. Its group has one generator: ``w1`` times :math:`e^t`, and ``w2`` times
# :math:`e^{-t}`.

images = load_digits(SEED).train_inputs.unflatten(1, (8, 8))
x, y = images[:, :4].mean((1, 2))[:, None], images[:, 4:].mean((1, 2))[:, None]
layers = nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
model = nn.Sequential(*layers).double()
objective = qn.Objective(model, nn.MSELoss(), (x, y))
symmetry = qn.discover(model, x)
group = symmetry.group
polar, balanced = qn.NodeWiseQuotient(symmetry), qn.BalancedQuotient(symmetry)
print(symmetry)

# %%
# Where both weights are positive the loss depends on their product alone: the level sets are
# orbits, hyperbolas, and the best product is known. Three of the minima:

line = torch.linspace(0.02, 3, 101, dtype=torch.float64)
plane = torch.cartesian_prod(line, line)
losses = torch.func.vmap(objective)(plane)
best = (x * y).mean() / (x * x).mean()
t = torch.tensor([[-0.7], [0.0], [0.8]], dtype=torch.float64)
minima = group.act(best.sqrt().expand(3, 2), t)

# %%
# A tangent vector has a part along the orbit and a horizontal one, at right angles to it in the
# metric. Here the log-polar and the balanced metric agree on what is horizontal: rays from the
# origin. To the eye they cross the hyperbolas at other angles, except where the weights are equal.

u = torch.tensor([[1.0, 0.3]], dtype=torch.float64).expand(3, 2)
for metric in (polar, balanced):
    across, along = metric.proju(minima, u), metric.vertical(minima, u)
    assert metric.inner(minima, across, along).abs().max() < 1e-14
    rates = across / minima  # equal for rays
    assert (rates[:, 0] - rates[:, 1]).abs().max() < 1e-13
angles = torch.nn.functional.cosine_similarity(across, along).abs().acos().rad2deg()
print("to the eye:", ", ".join(f"{angle:.0f}°" for angle in angles))

# %%
# Geodesics from each minimum across the orbits, with a unit of length in ten steps; geodesics from
# the middle one in all directions; and around each minimum all that is 0.3 away, or less.


def unit(metric, w, v):
    """Horizontal, of length 1."""
    v = metric.proju(w, v)
    return v / metric.norm(w, v)[..., None]


steps = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None, None]
across = polar.expmap(minima.expand(21, 3, 2), steps * unit(polar, minima, minima))
turn = torch.linspace(0, 2 * torch.pi, 97, dtype=torch.float64)
circle = torch.stack([turn.cos(), turn.sin()], 1)[:, None]
discs = polar.expmap(minima.expand(97, 3, 2), 0.3 * circle / polar.frame(minima))
middle, ahead = minima[1].expand(21, 6, 2), circle[:48:8, 0]
fan = polar.expmap(middle, steps * ahead / polar.frame(middle))

# %%
# How the loss rises when one walks across the orbits: straight ahead, as the eye sees it (where
# ``w1`` turns negative the unit is dead), or a length in a metric of the quotient. The canonical
# networks of the balanced one lie on the diagonal, so that its retraction is its geodesic.

normal = minima.flip(1) / minima.norm(dim=1, keepdim=True)
walks = {
    "straight ahead": minima + steps * normal,
    "log-polar": across,
    "balanced": torch.stack(
        [balanced.retr(minima, s * unit(balanced, minima, minima)) for s in steps]
    ),
}
profiles = {
    name: torch.func.vmap(objective)(w.reshape(-1, 2)).reshape(21, 3)
    for name, w in walks.items()
}

# %%
# In logarithms of the weights, on the third panel, all of the log-polar geometry is Euclidean.

figure, axes = plt.subplots(2, 2, figsize=(9.5, 9), layout="constrained")
levels = losses.min() + losses.std() * torch.linspace(0, 2.5, 26) ** 2
curves = {
    "horizontal geodesics, steps of 0.1": (across, ".-", "C1"),
    "other geodesics": (fan, "--", "0.35"),
    "0.3 away": (discs, "-", "k"),
}
for axis in axes.flat[:3]:
    logs, eye = axis is axes[1, 0], axis is axes[0, 0]
    show = (lambda w: w.log().movedim(-1, 0)) if logs else (lambda w: w.movedim(-1, 0))
    grid = [each.reshape(101, 101) for each in (*show(plane), losses)]
    axis.contourf(*grid, levels=levels, cmap="Blues", extend="both")
    axis.contour(*grid, levels=levels, colors="C0", linewidths=0.4)
    orbit = group.act(minima[1].expand(97, 2), turn[:, None] - torch.pi)
    axis.plot(*show(orbit), color="C3", label="an orbit: the minima")
    axis.plot(*show(minima), "o", color="C3")
    shown = {"0.3 away": (minima + 0.3 * circle, "-", "k")} if eye else curves
    for name, (found, style, colour) in shown.items():
        label = [name] + ["_"] * (found.shape[1] - 1)
        axis.plot(*show(found), style, color=colour, lw=1, ms=5, label=label)
    span, prefix = ((-1.6, 1.1), "ln ") if logs else ((0, 3), "")
    axis.set(xlim=span, ylim=span, aspect="equal")
    axis.set(xlabel=f"{prefix}w1 (no unit)", ylabel=f"{prefix}w2 (no unit)")
axes[0, 0].set_title("Level sets, and discs to the eye")
axes[0, 1].set_title("Horizontal geodesics, and discs of the metric")
axes[1, 0].set_title("The same, in logarithms")
for (name, found), style in zip(profiles.items(), ("C0-", "C1-", "C2--")):
    axes[1, 1].plot(steps[:, 0], found, style, label=[name, "_", "_"])
axes[1, 1].set(title="From three minima", ylabel="loss (squared ink)")
axes[1, 1].set_xlabel("length walked across orbits (in units of the metric)")
for axis in axes.flat:
    if axis is not axes[1, 0]:
        axis.legend(fontsize="small")

# %%
# All of it against closed forms, in terms of the product ``p`` of the weights.

p = plane.prod(1)
parabola = (x * x).mean() * p**2 - 2 * (x * y).mean() * p + (y * y).mean()
torch.testing.assert_close(losses, parabola)
torch.testing.assert_close(across.log(), minima.log() + steps / 2**0.5)  # straight
torch.testing.assert_close(fan.log(), middle.log() + steps * ahead)
one, other = plane[::397], plane.flip(0)[5::397]
ratio = (other.prod(1) / one.prod(1)).log()
torch.testing.assert_close(polar.dist(one, other), ratio.abs() / 2**0.5)
arrived = polar.expmap(one, polar.logmap(one, other))
torch.testing.assert_close(arrived.prod(1), other.prod(1))
roots = one.prod(1).sqrt() - other.prod(1).sqrt()
torch.testing.assert_close(balanced.chordal_distance(one, other), roots.abs() * 2**0.5)
for name in ("balanced", "log-polar"):
    torch.testing.assert_close(profiles[name], profiles[name][:, :1].expand(21, 3))
rise = profiles["straight ahead"][12] - objective(minima[1])
assert rise[2] > 2 * rise[1]  # the sharper one has the same function
