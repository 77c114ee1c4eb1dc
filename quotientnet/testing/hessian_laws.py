"""Laws of the Riemannian Hessian of an invariant loss, away from critical points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quotientnet.manifolds import QuotientManifold
from quotientnet.objective import Objective
from quotientnet.options import require_seed, require_values
from quotientnet.testing.laws import Verdict, check_laws, registry
from quotientnet.testing.manifold_laws import supports
from quotientnet.testing.samples import Sample

__all__ = ["HESSIAN_LAWS", "HessianSample", "check_hessian"]

HESSIAN_LAWS = {}
law = registry(HESSIAN_LAWS)


@dataclass(frozen=True)
class HessianSample:
    """A manifold, an objective invariant under its group, and a point.

    Attributes:
        manifold: The quotient.
        objective: The loss; its layout the manifold's.
        w: The point, shape ``(n,)``.
        seed: Of the vectors drawn.
    """

    manifold: object
    objective: object
    w: torch.Tensor
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.manifold}, {self.dtype}"

    @property
    def dtype(self):
        """The dtype of everything."""
        return self.w.dtype

    def vectors(self, count: int) -> torch.Tensor:
        """Random frame coordinates, one a column, of norm 1."""
        generator = torch.Generator(self.w.device).manual_seed(self.seed)
        options = {"dtype": self.dtype, "device": self.w.device, "generator": generator}
        z = torch.randn(len(self.w), count, **options)
        return z / z.norm(dim=0)

    def hessian(self, w=None, connection="levi-civita"):
        """The operator at ``w``."""
        point = self.objective.at(self.w if w is None else w)
        return self.manifold.riemannian_hessian(point, connection)


def check_hessian(manifold, objective, w, *, seed: int = 0) -> list[Verdict]:
    """Every Hessian law at one point.

    Args:
        manifold: The quotient.
        objective: An objective that is invariant under the manifold's group.
        w: A point, shape ``(n,)``, float64.
        seed: Of the vectors drawn.

    Raises:
        TypeError: An argument of another kind.
        ValueError: A point of another shape, or that is not finite; a seed out of range.
    """
    caller = "check_hessian"
    if not isinstance(manifold, QuotientManifold) or not isinstance(objective, Objective):
        raise TypeError(
            f"{caller}: needs a QuotientManifold and an Objective, got {type(manifold).__name__} "
            f"and {type(objective).__name__}"
        )
    require_values(w, caller, "w", ndim=1)
    objective.layout.check(w, caller)
    require_seed(seed, caller)
    sample = HessianSample(manifold, objective, w, seed)
    laws = [law for law in HESSIAN_LAWS.values() if supports(manifold, law.requires)]
    return check_laws(laws, [sample], lambda law, sample: True)


@law(double=1e-8)
def loss_is_invariant(s):
    """The loss is equal at equivalent points, without which nothing else means anything."""
    sample = Sample(s.manifold, s.seed, dtype=s.dtype, device=s.w.device)
    moved = s.manifold.group.act(s.w, sample.element(9))
    here, there = s.objective(s.w), s.objective(moved)
    return float((here - there).abs() / here.abs().clamp(min=torch.finfo(s.dtype).tiny))


@law()
def hessian_is_symmetric(s):
    """``⟨a, Hess b⟩ = ⟨Hess a, b⟩`` in frame coordinates."""
    a, b = s.vectors(2).T
    operator = s.hessian()
    left, right = operator @ a, operator @ b
    return float((a @ right - b @ left).abs() / (left.norm() + right.norm()))


@law()
def hessian_annihilates_orbits(s):
    """Vertical vectors are null vectors of the operator, also away from critical points."""
    m, sample = s.manifold, Sample(s.manifold, s.seed, dtype=s.dtype, device=s.w.device)
    velocity = m._keep(m.group.generate(s.w, sample.element(7))) * m.frame(s.w)
    operator, z = s.hessian(), s.vectors(1)[:, 0]
    size = (velocity.norm() * (operator @ z).norm()).clamp(
        min=torch.finfo(s.dtype).tiny
    )
    return float((operator @ velocity).norm() / size)


@law(double=1e-8, single=None, requires=("expmap",))
def hessian_is_second_derivative_along_geodesics(s):
    """``⟨ξ, Hess ξ⟩`` is the loss's second derivative along the geodesic with velocity ``ξ``."""
    m, z = s.manifold, s.vectors(1)[:, 0]
    xi = m.proju(s.w, z / m.frame(s.w))
    xi = xi / m.norm(s.w, xi)
    z = xi * m.frame(s.w)
    along = float(z @ (s.hessian() @ z))
    tau = torch.zeros((), dtype=s.dtype, device=s.w.device, requires_grad=True)
    value = s.objective(m.expmap(s.w, tau * xi))
    (first,) = torch.autograd.grad(value, tau, create_graph=True)
    (second,) = torch.autograd.grad(first, tau)
    scale = float((s.hessian() @ z).norm())
    return abs(float(second) - along) / scale


@law(double=1e-8)
def hessian_is_equivariant(s):
    """The operator in frame coordinates is the same at equivalent points."""
    z, m = s.vectors(1)[:, 0], s.manifold
    t = Sample(m, s.seed, dtype=s.dtype, device=s.w.device).element(8)
    moved = m.group.act(s.w, t)
    worst = 0.0
    for connection in ("levi-civita", "flat"):
        here, there = (
            s.hessian(connection=connection) @ z,
            s.hessian(moved, connection) @ z,
        )
        worst = max(worst, float((here - there).norm() / here.norm()))
    return worst
