"""
Find a maximum on a manifold
============================

Which direction in parameter space bends the loss most? The curvature along a unit vector is a
function on a sphere. Four methods look for its maximum; how much does each have to pay?
"""

import geoopt
import matplotlib.pyplot as plt
import torch

import quotientnet as qn
from quotientnet.digits import load_digits, make_network, train
from quotientnet.optimization import frechet_mean, maximize

SEED = 0

# %%
# The Hessian of a small network on handwritten digits, restricted to its last layer, as a matrix.

digits = load_digits(SEED)
network = make_network(SEED)
train(network, digits, batch_size=128, epochs=4, seed=SEED)
data = (digits.train_inputs, digits.train_targets)
objective = qn.Objective(network, torch.nn.CrossEntropyLoss(), data)
w = objective.layout.flatten(network)
hessian = objective.at(w).hessian.restrict(objective.layout.mask("4"))
matrix = hessian.to_dense()
print(f"{len(matrix)} parameters")


def curvature(x):
    """The second derivative of the loss along ``x``; any number of directions at once."""
    return ((x @ matrix) * x).sum(-1)


# %%
# One starting point for all, at random.

generator = torch.Generator().manual_seed(SEED)
start = torch.randn(len(matrix), generator=generator, dtype=torch.float64)
start = start / start.norm()
optima = {
    method: maximize(
        curvature,
        geoopt.Sphere(),
        start,
        method=method,
        tolerance=1e-11,
        max_iterations=3000,
    )
    for method in ("gradient", "conjugate-gradient", "power", "trust-region")
}
for method, optimum in optima.items():
    print(f"{method:20} {optimum.value:.12f}  {optimum.iterations:4} iterations")

# %%
# The trust region converges faster than any fixed ratio: its printed order approaches two.

print(optima["trust-region"])

# %%
# A product with the Hessian costs two gradients.

figure, axis = plt.subplots(figsize=(6, 3.8), layout="constrained")
for method, optimum in optima.items():
    spent = [e.gradients + 2 * e.hessian_products for e in optimum.history.evaluations]
    axis.semilogy(spent, optimum.history.gradient_norms[:, 0], label=method)
axis.set_xlabel("gradients, or their worth in products with the Hessian")
axis.set_ylabel("length of the Riemannian\ngradient (units of the loss)")
axis.legend()

# %%
# The same function from many points at once, and the mean of three networks, up to scales: the
# second and third lie symmetrically about the first.

starts = torch.randn(8, len(matrix), generator=generator, dtype=torch.float64)
many = maximize(curvature, geoopt.Sphere(), starts / starts.norm(dim=1, keepdim=True))
manifold = qn.LayerScaleQuotient(qn.discover(network, data[0][:2]))
step = manifold.proju(w, 0.1 * torch.randn(w.shape, generator=generator).to(w) * w)
three = torch.stack([w, manifold.expmap(w, step), manifold.expmap(w, -step)])
mean = frechet_mean(manifold, three, start=three[1])
print(f"{mean.reason}; {float(manifold.dist(mean.point, w)):.1e} from the middle one")

# %%
# All of it against the eigenvalues.

values, vectors = torch.linalg.eigh(matrix)
for optimum in optima.values():
    assert optimum.converged and abs(optimum.value - values[-1]) < 1e-10
    assert abs(abs(float(optimum.point @ vectors[:, -1])) - 1) < 1e-12
assert (many.values - values[-1]).abs().max() < 1e-10
assert optima["trust-region"].rates()[1][1:].nan_to_num().max() > 1.5
assert manifold.dist(mean.point, w) < 1e-10
