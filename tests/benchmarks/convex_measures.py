"""Normalised and minimum sharpness beside an independent optimum and the papers' descent."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

import quotientnet as qn
from quotientnet.curvature import ggn_diagonal, ggn_traces
from quotientnet.digits import load_digits, make_network, train
from quotientnet.exponential import minimise_exponentials
from quotientnet.sharpness.variances import minimise_variances

STEPS = 10_000
RATES = (1e-1, 1e-2, 1e-3)


def matrices(point) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Curvature and squares of each matrix."""
    diagonal = ggn_diagonal(point).clamp(min=0)
    return [
        (diagonal[e.slice].reshape(e.shape), point.w[e.slice].square().reshape(e.shape))
        for e in point.layout.entries
        if len(e.shape) == 2
    ]


def banded(size: int, width: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One matrix on which sweeps are slow."""
    generator = torch.Generator().manual_seed(0)
    band = torch.ones(size, size).tril(width).triu(-width).double()
    draws = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    return [tuple((2 * draws).exp() * band)]


class Normalised:
    """The sum over matrices of (17), in the logarithms of variances."""

    def __init__(self, found):
        kept = []
        for h, v in found:
            rows = (h.sum(1) > 0) & (v.sum(1) > 0)
            columns = (h.sum(0) > 0) & (v.sum(0) > 0)  # the others' infimum is 0
            kept.append((h[rows][:, columns], v[rows][:, columns]))
        self.matrices = kept

    def ours(self) -> float:
        """The value by sweeps and Newton."""
        return sum(minimise_variances(h, v).value for h, v in self.matrices)

    def scipy(self) -> float:
        """The value by scipy's trust region with dense Hessians."""
        return sum(_trust(h.numpy(), v.numpy()) for h, v in self.matrices)

    def descent(self, rate: float) -> float:
        """The value after the paper's SGD on all ``x`` and ``y``."""
        x = [
            torch.zeros(len(h), 1, dtype=h.dtype, requires_grad=True)
            for h, _ in self.matrices
        ]
        y = [torch.zeros(1, h.shape[1], dtype=h.dtype, requires_grad=True)
             for h, _ in self.matrices]  # fmt: skip

        def loss():
            pairs = zip(self.matrices, x, y)
            return sum(
                (h * (a + b).exp() + v * (-a - b).exp()).sum() for (h, v), a, b in pairs
            )

        return _sgd(loss, [*x, *y], rate)


class Minimum:
    """The least trace over a group."""

    def __init__(self, point, group):
        self.group = group
        uniform = all(t.index.size == 1 for ts in group.incidence.values() for t in ts)
        self.coefficients = ggn_diagonal(point)
        self.exponents = group.exponents(
            torch.eye(group.dimension).double()
        ).T.contiguous()
        if uniform:  # one term a tensor, as the paper's
            traces = ggn_traces(point).traces
            entries = point.layout.entries
            values = [traces[e.name].value for e in entries]
            values = torch.tensor(values, dtype=torch.float64)
            self.small = values, self.exponents[[e.start for e in entries]]
        else:
            self.small = self.coefficients, self.exponents

    def ours(self) -> float:
        """The value by the one convex solver."""
        return minimise_exponentials(self.group, self.coefficients, factor=-2.0).value

    def scipy(self) -> float:
        """The value by scipy's trust region with dense exponents."""
        c, a = (t.numpy() for t in self.small)

        def value(t):
            terms = c * np.exp(-2 * a @ t)
            return terms.sum(), -2 * a.T @ terms

        def second(t):
            return 4 * a.T @ ((c * np.exp(-2 * a @ t))[:, None] * a)

        start = np.zeros(a.shape[1])
        return _minimum(value, second, start)

    def descent(self, rate: float) -> float:
        """The value after SGD on the logarithms of the scales."""
        c, a = self.small
        t = torch.zeros(a.shape[1], dtype=c.dtype, requires_grad=True)
        return _sgd(lambda: (c * (-2 * (a @ t)).exp()).sum(), [t], rate)


def _trust(h, v) -> float:
    rows, columns = h.shape

    def terms(z):
        e = np.exp(z[:rows, None] + z[None, rows:])
        return h * e, v / e

    def value(z):
        a, b = terms(z)
        return (a + b).sum(), np.concatenate([(a - b).sum(1), (a - b).sum(0)])

    def second(z):
        m = sum(terms(z))
        return np.block([[np.diag(m.sum(1)), m], [m.T, np.diag(m.sum(0))]])

    return _minimum(value, second, np.zeros(rows + columns))


def _minimum(value, second, start) -> float:
    return minimize(
        value, start, jac=True, hess=second, method="trust-exact",
        options={"gtol": 1e-10, "maxiter": 10_000, "max_trust_radius": 50.0},
    ).fun  # fmt: skip


def _sgd(loss, parameters, rate: float) -> float:
    optimizer = torch.optim.SGD(parameters, lr=rate)
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    return float(loss().detach())


def measure(name: str, problem) -> dict:
    """One line: values, and times of our solution and of the descent."""
    expected, times = problem.scipy(), []
    problem.ours()
    for _ in range(5):
        start = perf_counter()
        found = problem.ours()
        times.append(perf_counter() - start)
    gaps, seconds = [], []
    for rate in RATES:
        start = perf_counter()
        gaps.append(problem.descent(rate) / expected - 1)
        seconds.append(perf_counter() - start)
    finite = [gap for gap in gaps if np.isfinite(gap)]
    return {
        "problem": name, "value": found, "difference": abs(found / expected - 1),
        "milliseconds": 1e3 * median(times), "descent_seconds": median(seconds),
        "ratio": median(seconds) / median(times),
        "descent_gap": min(finite) if finite else None,
    }  # fmt: skip


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    digits, network = load_digits(), make_network()
    train(network, digits, batch_size=256, epochs=20)
    data = digits.train_inputs, digits.train_targets
    objective = qn.Objective(network, nn.CrossEntropyLoss(), data)
    point = objective.at(objective.layout.flatten(network))
    symmetry = qn.discover(network, data[0][:4])
    # Units and pixels that are never active have no curvature: their scales run away.
    problems = {
        "normalised, digits network": Normalised(matrices(point)),
        "normalised, banded 60 × 60": Normalised(banded(60, 2)),
        "minimum, layer scales with biases": Minimum(point, symmetry.layer_scales),
        "minimum, node-wise": Minimum(point, symmetry.group),
    }
    rows = []
    for name, problem in problems.items():
        rows.append(measure(name, problem))
        r = rows[-1]
        met = r["difference"] <= 1e-10 and r["ratio"] >= 100
        print(
            f"{name:36} {r['value']:.8g}  differs {r['difference']:.0e}  {r['milliseconds']:.2f} ms"
            f"  SGD {r['descent_seconds']:.2f} s, ratio {r['ratio']:.0f}, gap {r['descent_gap']}"
            f"  {'met' if met else 'MISSED'}",
            flush=True,
        )
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "steps": STEPS,
    }
    path = options.output / "convex_measures.json"
    path.write_text(
        json.dumps({**facts, "rates": RATES, "rows": rows}, indent=2) + "\n"
    )
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
