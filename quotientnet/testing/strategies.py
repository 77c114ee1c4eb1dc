"""Hypothesis strategies for networks, groups, manifolds, points and samples.

Importing this module registers hypothesis profiles ``quotientnet-quick``, ``quotientnet-ci`` and
``quotientnet-thorough``, which draw as many examples as
:data:`~quotientnet.testing.profiles.PROFILES` say: ``pytest
--hypothesis-profile=quotientnet-thorough``, or ``settings.load_profile``.
"""

from __future__ import annotations

import torch
from torch import nn

from quotientnet.manifolds import (
    BalancedQuotient,
    LayerScaleQuotient,
    LogPolarQuotient,
    NodeWiseQuotient,
)
from quotientnet.symmetry import Symmetry, discover
from quotientnet.testing.profiles import PROFILES, REGIMES, regime_options
from quotientnet.testing.riemannian_laws import supports
from quotientnet.testing.samples import Sample

try:
    from hypothesis import assume, settings
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "quotientnet.testing.strategies needs hypothesis: pip install quotientnet[test]"
    ) from error

__all__ = [
    "batches", "chain_inputs", "chains", "devices", "dtypes", "groups", "manifolds", "pairs",
    "points", "samples",
]  # fmt: skip

for _profile in PROFILES.values():
    settings.register_profile(
        f"quotientnet-{_profile.name}", max_examples=_profile.examples, deadline=None,
        database=None, derandomize=_profile.name != "thorough",
    )  # fmt: skip

_QUOTIENTS = [LayerScaleQuotient, NodeWiseQuotient, LogPolarQuotient]
_ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.Identity]


@st.composite
def chains(
    draw, max_layers: int = 4, max_width: int = 5, dtype=torch.float64
) -> nn.Sequential:
    """A chain of dense or of convolutional and dense layers that ends in three outputs.

    Some layers have biases, some are followed by batch normalisation (with ``eps`` so small that
    its symmetry is exact), and no parameter is zero. Dense chains take inputs of shape ``(N, 3)``,
    convolutional ones ``(N, 2, 6, 6)``.
    """
    widths = st.integers(1, max_width)
    layers, width = [], 3
    if draw(st.booleans()):
        width = draw(widths)
        layers += [nn.Conv2d(2, width, 3, bias=draw(st.booleans()))]
        layers += _between(draw, nn.BatchNorm2d, width)
        layers += [nn.Flatten()]
        width *= 16
    for _ in range(draw(st.integers(0, max_layers - 2))):
        following = draw(widths)
        layers += [nn.Linear(width, following, bias=draw(st.booleans()))]
        layers += _between(draw, nn.BatchNorm1d, following)
        width = following
    model = nn.Sequential(*layers, nn.Linear(width, 3, bias=draw(st.booleans()))).to(
        dtype
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            parameter.copy_(
                torch.where(noise == 0, 1.0, noise) / max(parameter.shape[-1], 1) ** 0.5
            )
    return model


def _between(draw, normalisation, width: int) -> list[nn.Module]:
    layers = [normalisation(width, eps=1e-30)] if draw(st.booleans()) else []
    return layers + [draw(st.sampled_from(_ACTIVATIONS))()]


def chain_inputs(model: nn.Sequential, count: int = 6, seed: int = 0) -> torch.Tensor:
    """Random inputs that a drawn chain takes."""
    shape = (2, 6, 6) if isinstance(model[0], nn.Conv2d) else (3,)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(
        model[0].weight.dtype
    )


@st.composite
def _symmetries(draw) -> Symmetry:
    model = draw(chains())
    return discover(model, chain_inputs(model))


@st.composite
def groups(draw):
    """The whole group of a drawn chain, or its layer scales."""
    symmetry = draw(_symmetries())
    return draw(st.sampled_from([symmetry.group, symmetry.layer_scales]))


@st.composite
def manifolds(draw):
    """A quotient of a drawn chain: balanced, or log-polar and some with parameters frozen at zero;
    never a point."""
    symmetry = draw(_symmetries())
    if draw(st.integers(0, 3)) == 3:
        return BalancedQuotient(symmetry)
    layout, zeros = symmetry.group.layout, None
    if draw(st.booleans()):
        density = draw(st.sampled_from([0.1, 0.5, 0.9]))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        zeros = (
            torch.rand(layout.size, generator=generator, dtype=torch.float64) > density
        ).double()
    manifold = draw(st.sampled_from(_QUOTIENTS))(symmetry, frozen_zeros=zeros)
    assume(manifold.dimension > 0)
    return manifold


def dtypes():
    """float64 and float32."""
    return st.sampled_from([torch.float64, torch.float32])


def batches():
    """Leading dimensions of points: none, one or two."""
    return st.sampled_from([(), (1,), (2,), (2, 1), (2, 3)])


def devices():
    """The processor, and every GPU there is."""
    names = [f"cuda:{k}" for k in range(torch.cuda.device_count())]
    return st.sampled_from(["cpu", *names])


@st.composite
def points(
    draw, manifold=None, max_spread: float = 6.0, dtype=torch.float64, device="cpu"
):
    """Points of a manifold, by default of a drawn one, shape ``(*batch, n)``.

    On a quotient they lie anywhere on their orbits, scaled over twelve orders of magnitude and
    more.
    """
    manifold = draw(manifolds()) if manifold is None else manifold
    spread = draw(st.floats(0.0, max_spread))
    return Sample(
        manifold, draw(_seeds()), draw(batches()), spread, dtype=dtype, device=device
    ).x


@st.composite
def pairs(
    draw, manifold=None, regime: str | None = None, dtype=torch.float64, device="cpu"
):
    """Two points of a manifold that has ``expmap``, shape ``(*batch, n)`` each.

    They are nearly coincident, near, apart, far, nearly antipodal where there are spheres, or
    badly scaled along their orbits; the second is another representative of its orbit.

    Args:
        draw: Hypothesis's own.
        manifold: By default a drawn one.
        regime: One of :data:`~quotientnet.testing.profiles.REGIMES`; by default any.
        dtype: Of the points.
        device: Likewise.
    """
    manifold = draw(manifolds()) if manifold is None else manifold
    regimes = REGIMES if regime is None else (regime,)
    known = regime_options(manifold, regimes, dtype)
    assume(known and supports(manifold, ("expmap",)))
    options = draw(st.sampled_from(known))
    sample = Sample(
        manifold, draw(_seeds()), draw(batches()), dtype=dtype, device=device, **options
    )
    return sample.x, sample.elsewhere(manifold.expmap(sample.x, sample.tangent(4)))


def _seeds():
    return st.integers(0, 2**20)


@st.composite
def samples(
    draw, manifold=None, max_spread: float = 6.0, dtype=torch.float64
) -> Sample:
    """Points, tangent vectors and group elements on a manifold, by default a drawn one.

    Points are scaled by up to about ``e^{±3 max_spread}`` along their orbits; tangent vectors are
    between nearly zero and nearly the injectivity radius π.
    """
    return Sample(
        draw(manifolds()) if manifold is None else manifold,
        seed=draw(_seeds()),
        batch=draw(st.sampled_from([(), (2,), (2, 1)])),
        spread=draw(st.floats(0.0, max_spread)),
        length=draw(st.floats(1e-3, 3.0)),
        dtype=dtype,
    )
