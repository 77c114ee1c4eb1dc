"""Whether the translations found are all there are, at one point and to first order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from quotientnet.layout import ParameterLayout
from quotientnet.options import seeded
from quotientnet.symmetry.complete import Completeness
from quotientnet.symmetry.derivative import Differentiable
from quotientnet.symmetry.discover import call_arguments
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.replica import Replica, drawn_again

__all__ = ["verify_translations_complete"]

_NEGLIGIBLE = 1e-9
"""Singular values below this, relative to the largest, are zeros."""


def verify_translations_complete(
    model: nn.Module,
    symmetry: Symmetry,
    example_inputs: Tensor | Sequence | Mapping,
    *,
    seed: int = 0,
    weights: bool = True,
) -> Completeness:
    r"""Compare translations with all moves of a kind that derivatives allow at a random point.

    Candidates are, at a fixed random ``w``: every entry of a parameter with one axis or none and of
    a running mean; for one with more axes, what is constant along the first axis and what is
    constant along the second. Of the weights of linear layers and convolutions only a random half
    of these: what reads a normalised value also has directions that depend on the normalisation's
    own scale, :math:`W \leftarrow W + u\,\gamma^{-1\top}`, which are not looked for. Random
    combinations of the outputs' derivatives on random inputs are stacked until there are more of
    them than candidates; their null space is compared with the translations inside the same span.
    Velocities of the scaling group that lie in it do not count. A running mean must move with the
    mean of its data, in either mode.

    At one point, derivatives may allow more than at others: a unit of a ReLU network may be off, or
    on, for all inputs. A translation that is missing is so everywhere. So while something is, or
    has no effect, other points are tried, 24 at most, until six agree from the first; the outcome
    is that with the fewest missing. Entries without any effect do not count: words that the ids do
    not contain, parameters that the module never reads.

    Args:
        model: Any module; it is copied to float64 and taken in its present mode.
        symmetry: What ``discover`` returned.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments;
            they are drawn again as in :func:`~quotientnet.verify_complete`.
        seed: Of the point, inputs and candidates.
        weights: Whether directions of the weights of layers are candidates. Two linear layers with
            nothing between them have others among these, of their general linear gauge.

    Returns:
        Both dimensions, and the parameters that a missing translation moves; ``idle`` lists those
        with entries without effect at all points tried.

    Raises:
        TypeError: ``symmetry`` is not what ``discover`` returned, or the inputs are none.
        ValueError: The model does not run on the inputs, or is another one.

    Note:
        One forward and backward for each candidate and point: for small copies of an architecture.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        >>> x = torch.randn(5, 4)
        >>> symmetry = qn.discover(model, x)
        >>> qn.symmetry.verify_translations_complete(model, symmetry, x).require().missing
        0
    """
    caller = "verify_translations_complete"
    if not isinstance(symmetry, Symmetry):
        raise TypeError(
            f"{caller}: symmetry must be what discover(model, inputs) returned, got "
            f"{type(symmetry).__name__}"
        )
    layout, generator = symmetry.group.layout, seeded(seed, "verify_translations_complete")
    replica = Replica(model, layout, caller)
    inputs = call_arguments(example_inputs, caller)
    candidates = _candidates(replica.model, layout, weights, generator)
    outcomes, counts, live = [], [], np.zeros(layout.size, dtype=bool)
    while len(outcomes) < _POINTS:
        w = _point(replica, generator)
        rows = _rows(replica, w, inputs, candidates.shape[1] + 64, generator)
        here = (rows != 0).any(0)
        live |= here
        outcomes.append(_compared(symmetry, w, rows, candidates, here))
        counts.append((outcomes[-1].missing, int((~here).sum())))
        if outcomes[-1].extra or counts[-1] == (0, 0) or counts == counts[:1] * _AGREED:
            break
    best = outcomes[-1 if outcomes[-1].extra else counts.index(min(counts))]
    idle = tuple(e.name for e in layout.entries if not live[e.slice].all())
    return replace(best, idle=idle)


_POINTS, _AGREED = 24, 6
"""The points tried at most, and how many may have the same left over before it is the answer."""


def _point(replica: Replica, generator) -> Tensor:
    """A random one with small biases."""
    w = replica.random_point(generator)
    return torch.cat(
        [
            w[e.slice] * (0.1 if len(e.shape) < 2 and "bias" in e.name else 1)
            for e in replica.layout.entries
        ]
    )


def _compared(
    symmetry: Symmetry, w: Tensor, rows: np.ndarray, candidates: np.ndarray, live
) -> Completeness:
    """The outcome at one point, on entries that have an effect there."""
    layout = symmetry.group.layout
    candidates = _orthonormal(candidates * live[:, None])
    _, values, vectors = np.linalg.svd(rows @ candidates, full_matrices=True)
    rank = int((values > _NEGLIGIBLE * values[0]).sum())
    found = candidates @ vectors[rank:].T
    eye = torch.eye(symmetry.group.dimension, dtype=torch.float64)
    scalings = (symmetry.group.exponents(eye) * w).T.numpy()
    velocities = _orthonormal(scalings * live[:, None])
    directions = _directions(symmetry, w) * live[:, None]
    inside = directions @ _null_space(
        directions - candidates @ (candidates.T @ directions)
    )
    found, derived = (_orthonormal(_off(velocities, d)) for d in (found, inside))
    missing = _orthonormal(_off(derived, found), 1e-6)
    slopes = np.linalg.norm(rows @ _orthonormal(directions), axis=0)
    weight = (missing**2).sum(1)
    return Completeness(
        derived.shape[1], found.shape[1], missing.shape[1], int((slopes > 1e-7 * values[0]).sum()),
        tuple(e.name for e in layout.entries if weight[e.slice].sum() > 1e-6), (),
        "entries, rows and columns of translations",
        float(values[rank - 1] / max(values[rank:].max(initial=0.0), 1e-300)), len(rows),
    )  # fmt: skip


def _directions(symmetry: Symmetry, w: Tensor) -> np.ndarray:
    bases = [t.basis(w) for t in symmetry.translations]
    return torch.cat([w.new_zeros(len(w), 0), *bases], 1).numpy()


def _candidates(
    model: nn.Module, layout: ParameterLayout, weights: bool, generator
) -> np.ndarray:
    tables = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    columns = []
    for entry in layout.entries:
        if entry.passive and not entry.name.endswith("running_mean"):
            continue
        place = torch.arange(entry.start, entry.start + entry.numel).view(entry.shape)
        read = entry.name.endswith("weight") and entry.name not in tables
        if read and len(entry.shape) > 1 and not weights:
            continue
        for axis in (
            range(min(len(entry.shape), 2)) if len(entry.shape) > 1 else (None,)
        ):
            each = (
                place.reshape(1, -1)
                if axis is None
                else place.movedim(axis, 0).flatten(1)
            )
            block = np.zeros((layout.size, each.shape[1]))
            block[each.numpy(), np.arange(each.shape[1])] = 1.0
            if axis is not None and read:
                half = max(each.shape[1] // 2, 1)
                mix = torch.randn(each.shape[1], half, generator=generator).double()
                block = block @ mix.numpy()
            columns.append(block)
    return np.concatenate(columns, 1)


def _rows(replica: Replica, w: Tensor, inputs, number: int, generator) -> np.ndarray:
    """Derivatives of random combinations of results, shape ``(number, n)``."""
    model, layout, rows = replica.model, replica.layout, []
    replica.move(w)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    leaves = [tensors[entry.name] for entry in layout.entries]
    while len(rows) < number:
        args, kwargs = tree_map_only(
            Tensor, lambda x: drawn_again(x, generator), inputs
        )
        replica.move(w)
        with torch.enable_grad():
            try:
                for leaf in leaves:
                    leaf.requires_grad_()
                mode = _WithMeans()
                results = replica.forward(args, kwargs, mode) + mode.gaps
                results = [torch.where(torch.isfinite(y), y, 0.0) for y in results]
                for _ in range(min(sum(y.numel() for y in results), 16)):
                    total = sum(_mixed(y, generator) for y in results)
                    options = {"retain_graph": True, "materialize_grads": True}
                    slopes = torch.autograd.grad(
                        total, leaves, allow_unused=True, **options
                    )
                    # Zeros that autograd fills in may want a gradient themselves.
                    rows.append(torch.cat([s.detach().reshape(-1) for s in slopes]))
            finally:
                for leaf in leaves:
                    leaf.requires_grad_(False)
    return torch.stack(rows).numpy()


def _mixed(y: Tensor, generator) -> Tensor:
    noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    return (y * noise / y.detach().abs().amax().clamp(min=1e-30)).sum()


class _WithMeans(Differentiable):
    """Keeps how far the mean of each channel is from its running mean."""

    def __init__(self):
        super().__init__()
        self.gaps: list[Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (F.batch_norm, F.instance_norm):
            named = dict(zip(("input", "running_mean"), args)) | (kwargs or {})
            x, mean = named["input"], named.get("running_mean")
            if mean is not None:
                self.gaps.append(x.mean([a for a in range(x.ndim) if a != 1]) - mean)
        return super().__torch_function__(function, types, args, kwargs)


def _orthonormal(columns: np.ndarray, relative: float = 1e-9) -> np.ndarray:
    if not columns.shape[1]:
        return columns
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    return u[:, s > relative * max(s[0], 1.0)]


def _null_space(matrix: np.ndarray) -> np.ndarray:
    _, s, vh = np.linalg.svd(matrix, full_matrices=True)
    return vh[int((s > 1e-9 * max(s.max(initial=0.0), 1.0)).sum()) :].T


def _off(basis: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return columns - basis @ (basis.T @ columns)
