"""Laws of scaling groups."""

from __future__ import annotations

import torch

from quotientnet.symmetry import balancing
from quotientnet.testing.laws import Verdict, check_laws, registry, worst
from quotientnet.testing.profiles import Profile, samples_for

__all__ = ["GROUP_LAWS", "check_group"]

GROUP_LAWS = {}
law = registry(GROUP_LAWS)


def check_group(
    manifold,
    *,
    profile: str | Profile | None = None,
    seed: int = 0,
    dtype=torch.float64,
    device="cpu",
    **options,
) -> list[Verdict]:
    """Every group law at a manifold's points; of each, the worst sample.

    Args:
        manifold: A manifold whose group is under test.
        profile: As for :func:`~quotientnet.testing.check_manifold`.
        seed: Of the samples.
        dtype: float32 or float64, without a profile.
        device: Of the points.
        options: Passed to :class:`~quotientnet.testing.Sample`, without a profile.
    """
    samples = samples_for(
        manifold, profile, "check_group", seed, dtype, device, options
    )
    return check_laws(GROUP_LAWS.values(), samples, lambda law, sample: True)


@law(double=0.0, single=0.0)
def identity_moves_nothing(s):
    """The identity leaves every point as it is."""
    e = s.group.identity(dtype=s.dtype, device=s.device)
    return float((s.group.act(s.x, e) - s.x).abs().max())


@law()
def composition_is_successive_action(s):
    """Acting by a composition is acting twice."""
    a, b = s.element(4), s.element(5)
    once = s.group.act(s.x, s.group.compose(a, b))
    return s.gap(once, s.group.act(s.group.act(s.x, b), a))


@law()
def inverse_undoes(s):
    """The inverse element brings every point back."""
    return s.gap(s.group.act(s.moved, s.group.inverse(s.t)), s.x)


@law(double=1e-7, single=None)
def generator_is_velocity_of_action(s):
    """``generate`` is the derivative of ``act`` along the orbit."""
    a, h = s.normal(4, s.group.dimension), 1e-5
    velocity = (s.group.act(s.x, h * a) - s.group.act(s.x, -h * a)) / (2 * h)
    return s.difference(
        s.x, s.manifold._keep(velocity), s.manifold._keep(s.group.generate(s.x, a))
    )


@law()
def adjoint_is_the_transpose(s):
    """``⟨A t, ρ⟩ = ⟨t, Aᵀ ρ⟩``."""
    t, rho = s.normal(4, s.group.dimension), s.normal(5, s.group.layout.size)
    left, right = (s.group.exponents(t) * rho).sum(-1), (t * s.group.adjoint(rho)).sum(
        -1
    )
    scale = s.group.exponents(t).norm(dim=-1) * rho.norm(dim=-1)
    return float(
        ((left - right).abs() / scale.clamp(min=torch.finfo(s.dtype).tiny)).max()
    )


@law(double=1e-12, single=1e-5)
def elements_in_batches_act_alone(s):
    """A batch of elements acts as each does alone, and ``out`` is the result."""
    first = (0,) * len(s.batch)
    group, w = s.group, s.x[first]
    t = torch.stack([s.t[first] * k for k in (-1.0, 0.5, 1.0)])
    alone = torch.stack([group.act(w, each) for each in t])
    exponents = torch.stack([group.exponents(each) for each in t])
    out = torch.full_like(exponents[0], torch.nan)
    if group.exponents(t[0], out=out) is not out:
        return torch.inf
    size = exponents.abs().max().clamp(min=torch.finfo(s.dtype).tiny)
    return worst(
        s.gap(group.act(w, t), alone),
        (group.exponents(t) - exponents).abs().max() / size,
        (out - exponents[0]).abs().max() / size,
    )


@law()
def gram_solve_recovers_exponents(s):
    """Solving with ``AᵀA`` recovers exponents from their gathered values."""
    exponents = s.group.exponents(s.normal(4, s.group.dimension))
    solved = s.group.gram().solve(s.group.adjoint(exponents)).to(s.dtype)
    size = exponents.abs().max().clamp(min=torch.finfo(s.dtype).tiny)
    return float((s.group.exponents(solved) - exponents).abs().max() / size)


@law()
def canonical_points_are_one_an_orbit(s):
    """The canonical point is the same along the orbit, under the generators that have a balance."""
    found = 0.0
    for x, t in zip(_rows(s.x), _rows(s.t)):
        kept = _balanced_part(s.group, x)
        moved = kept.act(x, t[balancing(x, s.group, runaways="exclude").balanced])
        found = worst(found, _difference(kept, moved, x))
    return found


@law()
def canonical_points_are_their_own(s):
    """The canonical point of a canonical point is that point."""
    found = 0.0
    for x in _rows(s.x):
        kept = _balanced_part(s.group, x)
        star = kept.act(x, balancing(x, kept).t.to(x))
        found = worst(found, _difference(kept, star, x))
    return found


def _rows(x):
    return x.unsqueeze(0).flatten(0, -2)


def _balanced_part(group, x):
    """The group of the generators that have a balance at ``x``."""
    return group.without(~balancing(x, group, runaways="exclude").balanced.cpu())


def _difference(group, x, y) -> float:
    """How far the canonical parameters of two points are apart, each by its own size."""
    n = group.layout.parameter_size
    a, b = (group.act(p, balancing(p, group).t.to(p))[:n] for p in (x, y))
    return float(((a - b).abs() / b.abs().clamp(min=torch.finfo(b.dtype).tiny)).max())
