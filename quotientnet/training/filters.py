"""Which parameters form normalised filters: derived from a symmetry, or listed by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor, nn

from quotientnet.group import ScalingGroup, as_group
from quotientnet.layout import ParameterLayout, tensors_of
from quotientnet.symmetry import Symmetry
from quotientnet.symmetry.normalised import normalised_blocks

__all__ = ["filter_blocks"]


def filter_blocks(
    module: nn.Module, filters: Symmetry | ScalingGroup | Iterable[str], caller: str
) -> tuple[ParameterLayout, dict[str, np.ndarray], int]:
    """The trainable parameters, and the block of each entry of those in normalised filters.

    A filter of which a part is frozen has no scale of its own, and counts among the rest.

    Args:
        module: The module.
        filters: What :func:`~quotientnet.discover` returned, a scaling group, or names of tensors
            and modules. One entry along a tensor's first axis is a filter; a module's name stands
            for its weight and its bias together.
        caller: Who is to be named in errors.

    Returns:
        The layout, without running statistics; block numbers from 0, −1 outside, which broadcast
        to the tensors' shapes, by name; the number of blocks.

    Raises:
        TypeError: ``filters`` is nothing of this kind.
        ValueError: There are no filters; a name that the module lacks, that occurs twice, or that
            is no filters'; a group of another model.
    """
    whole = ParameterLayout.from_module(module)
    own = {e.name: e.shape for e in whole.entries if not e.passive}
    layout = ParameterLayout(own, aliases=whole.aliases)
    if isinstance(filters, (Symmetry, ScalingGroup)):
        index = _of_group(module, filters, caller)
    else:
        index = _of_names(module, layout, filters, caller)
    index, count = _trainable(index, layout)
    if not count:
        raise ValueError(
            f"{caller}: found no normalised filters that are trained, and without them the "
            "sharpness is not one that scales of filters leave alone. Pass discover(model, inputs) "
            "of a model with batch normalisation, or list the tensors, such as ['conv1.weight']; "
            "for other models take SAM"
        )
    return layout, index, count


def _of_group(module: nn.Module, group, caller: str) -> dict[str, np.ndarray]:
    group, own = as_group(group, caller), tensors_of(module)
    index = normalised_blocks(group).index
    for name in index:
        shape, found = group.layout[name].shape, own.get(name)
        if found is None or tuple(found.shape) != shape:
            has = "none" if found is None else tuple(found.shape)
            raise ValueError(
                f"{caller}: filters is of another model: its {name!r} has shape {shape}, the "
                f"module has {has}; pass discover(model, inputs) of this one"
            )
    return index


def _of_names(
    module: nn.Module, layout: ParameterLayout, names, caller: str
) -> dict[str, np.ndarray]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        got = repr(names) if isinstance(names, str) else type(names).__name__
        raise TypeError(
            f"{caller}: filters must be what discover returned, a ScalingGroup, or a list of names "
            f"such as ['conv1.weight'], got {got}"
        )
    own, index, count = dict(module.named_parameters(remove_duplicate=False)), {}, 0
    for name in names:
        parts = dict(_tensors(module, own, name, caller))
        length = len(next(iter(parts.values())))
        for part, tensor in parts.items():
            part = layout.aliases.get(part, part)
            if part in index:
                raise ValueError(f"{caller}: filters names {part!r} twice")
            numbers = np.arange(count, count + length)
            index[part] = numbers.reshape(-1, *[1] * (tensor.ndim - 1))
        count += length
    return index


def _tensors(
    module: nn.Module, own: dict[str, Tensor], name: str, caller: str
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a name stands for, checked to have one filter along the first axis."""
    modules = dict(module.named_modules())
    given = name in own
    owner = modules.get(name.rpartition(".")[0] if given else name)
    weight = name if given else f"{name}.weight".removeprefix(".")
    if weight not in own:
        raise ValueError(
            f"{caller}: filters names {name!r}, which is no parameter of the module and no layer "
            f"with a weight; it has {', '.join(own)}"
        )
    if isinstance(owner, nn.modules.conv._ConvTransposeNd) or own[weight].ndim < 2:
        raise ValueError(
            f"{caller}: {weight!r} of {type(owner).__name__} has no filters along its first axis; "
            "list weights of linear and convolutional layers, or pass discover(model, inputs)"
        )
    yield weight, own[weight]
    bias = f"{name}.bias".removeprefix(".")
    if not given and bias in own:
        yield bias, own[bias]


def _trainable(index, layout: ParameterLayout) -> tuple[dict[str, np.ndarray], int]:
    """Only the blocks that are in the layout altogether, numbered anew."""
    inside = {name: i for name, i in index.items() if name in layout}
    lost = [i.reshape(-1) for name, i in index.items() if name not in layout]
    numbers = np.unique(np.concatenate([i.reshape(-1) for i in index.values()] or [[]]))
    kept = np.setdiff1d(numbers, np.concatenate([*lost, [-1]])).astype(int)
    new = np.full(int(max(numbers, default=0)) + 2, -1)  # the last entry is that of −1
    new[kept] = np.arange(len(kept))
    return {name: new[i] for name, i in inside.items()}, len(kept)
