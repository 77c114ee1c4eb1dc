"""What is read entry by entry, by sums and by normalisations."""

from __future__ import annotations

import torch

from quotientnet.symmetry.nodes import SHAPE_ONLY, name_of, shape_of
from quotientnet.symmetry.reads.registry import (
    Reading,
    anywhere,
    axes_of,
    fitted,
    reads,
)

__all__ = []


@reads(
    "relu", "dropout", "feature_dropout", "rrelu", "alpha_dropout", "feature_alpha_dropout",
    "alias", "detach", "detach_copy", "contiguous", "lift_fresh", "lift_fresh_copy", "clone", "to",
    "_to_copy", "hardswish", "log_sigmoid", "softsign", "tanhshrink", "special_expit", "divide",
    "multiply", "real", "imag", "conj", "_conj", "resolve_conj", "resolve_neg",
)  # fmt: skip
def entry_by_entry(reading: Reading):
    """The same entries of all arguments, wherever they are broadcast to."""
    arguments = reading.node.all_input_nodes
    return {a: fitted(reading.mask, shape_of(a)) for a in arguments}


@reads(*SHAPE_ONLY)
def nothing(reading: Reading):
    """Only how long the axes are."""
    return {reading.node.args[0]: torch.zeros((), dtype=torch.bool)}


@reads("prelu", "tril", "triu")
def first_entry_by_entry(reading: Reading):
    """As :func:`entry_by_entry`, and all of other arguments."""
    return reading.read({"self": reading.mask})


@reads(
    "sum", "mean", "amax", "amin", "nansum", "nanmean", "std", "var", "norm",
    "linalg_vector_norm", "logsumexp",
)  # fmt: skip
def reduction(reading: Reading):
    """All that makes a result."""
    mask = reading.mask
    if mask is not None and not reading.arguments.get("keepdim"):
        count = len(shape_of(reading["self"]))
        for axis in axes_of(reading.arguments.get("dim"), count):
            mask = mask.unsqueeze(axis)
    return reading.read({"self": mask})


@reads(
    "softmax",
    "_softmax",
    "log_softmax",
    "_log_softmax",
    "cumsum",
    "cumprod",
    "logcumsumexp",
)
def along_an_axis(reading: Reading):
    """Every entry along the axis."""
    mask = reading.mask
    axes = [] if mask is None or not mask.ndim else [reading["dim"]]
    return reading.read({"self": anywhere(mask, axes)})


@reads("layer_norm", "rms_norm")
def layer_norm(reading: Reading):
    """The whole of each group, a scale and a shift for each entry."""
    mask, dims = reading.mask, len(reading["normalized_shape"])
    x = anywhere(mask, range(-dims, 0))
    return reading.read({"input": x, "weight": mask, "bias": mask})


@reads("group_norm", "batch_norm", "instance_norm")
def norm_of_channels(reading: Reading):
    """Everything of a sample, of a channel, or of both."""
    mask, kept = reading.mask, _KEPT[name_of(reading.node)]
    if mask is None:
        return None
    x = anywhere(mask, [a for a in range(mask.ndim) if a not in kept])
    channels = anywhere(mask, [a for a in range(mask.ndim) if a != 1]).reshape(-1)
    return reading.read({"input": x, "weight": channels, "bias": channels})


_KEPT = {"group_norm": (0,), "batch_norm": (1,), "instance_norm": (0, 1)}
"""The axes along which entries are normalised apart from each other."""


@reads("glu")
def glu(reading: Reading):
    """An entry and its gate."""
    mask, dim = reading.mask, reading["dim"]
    if mask is not None and mask.shape[dim] > 1:
        mask = torch.cat([mask, mask], dim)
    return reading.read({"self": mask})


def _pooling(dims: int) -> None:
    names = (
        "max_pool",
        "avg_pool",
        "adaptive_avg_pool",
        "_adaptive_avg_pool",
        "lp_pool",
    )

    @reads(*(f"{name}{dims}d" for name in names))
    def pool(reading: Reading):
        """Everything of a channel."""
        return reading.read({"self": anywhere(reading.mask, range(-dims, 0))})


for _dims in (1, 2, 3):
    _pooling(_dims)
