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
# ``w2 relu(w1 x)``. Its group has one generator: ``w1`` times ``e^t``, ``w2`` times ``e^-t``.

images = load_digits(SEED).train_inputs.unflatten(1, (8, 8))
x, y = images[:, :4].mean((1, 2))[:, None], images[:, 4:].mean((1, 2))[:, None]
model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))  # fmt: skip
objective = qn.Objective(model.double(), nn.MSELoss(), (x, y))
symmetry = qn.discover(model, x)
group, polar, balanced = symmetry.group, qn.NodeWiseQuotient(symmetry), qn.BalancedQuotient(symmetry)  # fmt: skip
print(symmetry)

# %%
# Where both weights are positive the loss depends on their product alone: the level sets are orbits,
# hyperbolas, and the best product is known. Three of the minima:

line = torch.linspace(0.02, 3, 101, dtype=torch.float64)
plane = torch.cartesian_prod(line, line)
losses = torch.func.vmap(objective)(plane)
best = (x * y).mean() / (x * x).mean()
minima = group.act(best.sqrt().expand(3, 2), torch.tensor([[-0.7], [0.0], [0.8]]).double())  # fmt: skip

# %%
# A tangent vector has a part along the orbit and a horizontal one, at right angles to it in the
# metric. Here the log-polar and the balanced metric agree on what is horizontal: rays from the
# origin. To the eye they cross the hyperbolas at other angles, except where the weights are equal.

u = torch.tensor([[1.0, 0.3]], dtype=torch.float64).expand(3, 2)
for metric in (polar, balanced):
    across, along = metric.proju(minima, u), metric.vertical(minima, u)
    assert metric.inner(minima, across, along).abs().max() < 1e-14
    assert (across[:, 0] / across[:, 1] - minima[:, 0] / minima[:, 1]).abs().max() < 1e-13  # fmt: skip
angles = torch.nn.functional.cosine_similarity(across, along).abs().acos().rad2deg()
print("to the eye:", ", ".join(f"{angle:.0f}°" for angle in angles))

# %%
# Geodesics from each minimum across the orbits, with a unit of length in ten steps; geodesics from
# the middle one in all directions; and around each minimum all that is 0.3 away, or less.


def unit(metric, w, v):
    """Horizontal, of length 1."""
    v = metric.proju(w, v)
    return v / metric.norm(w, v)[..., None]


steps = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
across = [polar.expmap(w.expand(21, 2), steps * unit(polar, w, w)) for w in minima]
turn = torch.linspace(0, 2 * torch.pi, 97, dtype=torch.float64)[:, None]
circle = torch.cat([turn.cos(), turn.sin()], 1)  # of length 1 after division by the frame
discs = [polar.expmap(w.expand(97, 2), 0.3 * circle / polar.frame(w)) for w in minima]
middle = minima[1].expand(21, 2)
fan = [polar.expmap(middle, steps * v / polar.frame(minima[1])) for v in circle[:48:8]]

# %%
# How the loss rises when one walks across the orbits: straight ahead, as the eye sees it, or a length
# in a metric of the quotient. (The canonical networks of the balanced one lie on the diagonal, so
# that its retraction is its geodesic.)


def profile(walk, w):
    """The loss along a walk from ``w``, at each of the steps."""
    return torch.stack([objective(walk(w, s)) for s in steps])


walks = {
    "straight ahead": lambda w, s: w + s * w.flip(0) / w.norm(),
    "log-polar": lambda w, s: polar.expmap(w, s * unit(polar, w, w)),
    "balanced": lambda w, s: balanced.retr(w, s * unit(balanced, w, w)),
}
profiles = {name: torch.stack([profile(walk, w) for w in minima]) for name, walk in walks.items()}  # fmt: skip

# %%
# In logarithms of the weights, on the third panel, all of the log-polar geometry is Euclidean.

figure, axes = plt.subplots(2, 2, figsize=(9.5, 9), layout="constrained")
levels = losses.min() + losses.std() * torch.linspace(0, 2.5, 26) ** 2
for axis in axes.flat[:3]:
    logs = axis is axes[1, 0]
    show = (lambda w: w.log().T) if logs else (lambda w: w.T)
    grid = [each.reshape(101, 101) for each in (*show(plane), losses)]
    axis.contourf(*grid, levels=levels, cmap="Blues", extend="both")
    orbit = group.act(minima[1].expand(41, 2), 2.5 * torch.linspace(-1, 1, 41).double()[:, None])  # fmt: skip
    axis.plot(*show(orbit), color="C3", label="an orbit: the minima")
    for w, geodesic, disc in zip(minima, across, discs):
        axis.plot(*show(w[None]), "o", color="C3")
        if axis is axes[0, 0]:
            axis.plot(*show(w + 0.3 * circle), "k-", lw=1)
            continue
        axis.plot(*show(geodesic), ".-", color="C1", ms=5)
        axis.plot(*show(disc), "k-", lw=1)
    for curve in fan if axis is not axes[0, 0] else ():
        axis.plot(*show(curve), "--", color="0.35", lw=0.8)
    span = (-1.6, 1.1) if logs else (0, 3)
    names = ("ln w1", "ln w2") if logs else ("w1", "w2")
    axis.set(xlim=span, ylim=span, xlabel=f"{names[0]} (no unit)", ylabel=f"{names[1]} (no unit)", aspect="equal")  # fmt: skip
axes[0, 0].set_title("Level sets, and discs to the eye")
axes[0, 1].set_title("Horizontal geodesics, and discs of the metric")
axes[1, 0].set_title("The same, in logarithms")
axes[0, 0].legend(loc="upper right")
for (name, found), style in zip(profiles.items(), ("-", "-", "--")):
    for number, losses_along in enumerate(found):
        colour = f"C{list(profiles).index(name)}"
        axes[1, 1].plot(steps, losses_along, style, color=colour, label="_" if number else name)  # fmt: skip
axes[1, 1].set(xlabel="length walked across orbits (in units of the metric)", ylabel="loss (squared ink)", title="From three minima")  # fmt: skip
axes[1, 1].legend(title="three curves each")

# %%
# All of it against closed forms, in terms of the product ``p`` of the weights.

p = plane.prod(1)
parabola = (x * x).mean() * p**2 - 2 * (x * y).mean() * p + (y * y).mean()
torch.testing.assert_close(losses, parabola)
for curve, w, v in [*zip(across, minima, minima / 2**0.5), *zip(fan, middle, circle[:48:8] * best.sqrt())]:  # fmt: skip
    torch.testing.assert_close(curve.log(), w.log() + steps * v / w)  # straight lines
one, other = plane[::397], plane.flip(0)[5::397]
ratio = (other.prod(1) / one.prod(1)).log()
torch.testing.assert_close(polar.dist(one, other), ratio.abs() / 2**0.5)
torch.testing.assert_close(polar.expmap(one, polar.logmap(one, other)).prod(1), other.prod(1))  # fmt: skip
roots = one.prod(1).sqrt() - other.prod(1).sqrt()
torch.testing.assert_close(balanced.chordal_distance(one, other), roots.abs() * 2**0.5)
torch.testing.assert_close(profiles["balanced"][0], profiles["balanced"][2])
torch.testing.assert_close(profiles["log-polar"][0], profiles["log-polar"][2])
rise = profiles["straight ahead"][:, 12] - objective(minima[1])
assert rise[2] > 2 * rise[1]  # the sharper one has the same function
