"""Which layer's scales another layer can take up: mappings for smoothing and scale migration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from quotientnet.group import ScalingGroup, as_group
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.links import Link, links_of
from quotientnet.symmetry.transform import transform

__all__ = ["Part", "ScaleMapping", "ScaleMappings", "scale_mappings"]

_RUNS = 4
"""At most this many ranges of rows are spelled out in a table."""


@dataclass(frozen=True, eq=False)
class Part:
    """Where the channels of a mapping are in one parameter.

    Attributes:
        parameter: Its name.
        axes: The axes along which they lie; none if one channel is all of it.
        exponent: Entries of a channel with the scale ``s`` are multiplied by ``s**exponent``:
            negative for sources, positive for targets.
        channels: The channel at each place along ``axes``, −1 where none.
        dims: The number of axes of the parameter.
    """

    parameter: str
    axes: tuple[int, ...]
    exponent: int
    channels: np.ndarray
    dims: int

    @property
    def places(self) -> int | None:
        """How many places each channel has; ``None`` if they have different numbers."""
        counts = np.bincount(self.channels[self.channels >= 0])
        return int(counts[0]) if (counts == counts[0]).all() else None

    @property
    def range(self) -> str:
        """Where along its one axis, in words, such as ``" 0–3, 8–11"``; empty if everywhere."""
        if len(self.axes) != 1 or (self.channels >= 0).all():
            return ""
        at = np.flatnonzero(self.channels.reshape(-1) >= 0)
        runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
        texts = [f"{r[0]}–{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs]
        return " " + ", ".join(texts[:_RUNS] + ["…"] * (len(texts) > _RUNS))

    def __str__(self) -> str:
        if not self.axes:
            text = f"all of {self.parameter}"
        elif self.dims == 1:
            text = f"entries{self.range} of {self.parameter}"
        elif self.axes in ((0,), (1,)):
            role = ("rows", "columns")[self.axes[0]]
            text = f"{role}{self.range} of {self.parameter}"
        else:
            axes = " and ".join(map(str, self.axes))
            text = f"ax{'e' if len(self.axes) > 1 else 'i'}s {axes} of {self.parameter}"
        if self.places != 1:
            text += f", {self.places or 'several'} a channel"
        return text if abs(self.exponent) == 1 else f"{text} (exponent {self.exponent})"


@dataclass(frozen=True, eq=False)
class ScaleMapping:
    """Channels whose scale can be moved from one layer to those that read it.

    Attributes:
        source: The module, or parameter, in which the channels arise first.
        sources: What is divided by a channel's scale.
        targets: What is multiplied by it.
        generators: The number of each channel's generator in the group, shape ``(channels,)``.
        sign: That of their exponents on the sources.
        group: The group.
    """

    source: str
    sources: tuple[Part, ...]
    targets: tuple[Part, ...]
    generators: np.ndarray = field(repr=False)
    sign: int = field(repr=False)
    group: ScalingGroup = field(repr=False)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.generators)

    def coordinates(self, scales: Tensor) -> Tensor:
        """The group element that divides each channel by its scale at the source.

        Args:
            scales: Positive numbers, shape ``(..., channels)``. An entry of exponent ``e`` is
                multiplied by ``scale**e``.

        Returns:
            Coordinates ``t``, float64, shape ``(..., dimension)``, for
            :func:`~quotientnet.transform` and ``group.act``.

        Raises:
            TypeError: Scales that are no real numbers.
            ValueError: Another shape, or scales that are not positive and finite.
        """
        scales = _real(scales, self.source).detach().to("cpu", torch.float64)
        if scales.ndim < 1 or scales.shape[-1] != self.channels:
            raise ValueError(
                f"ScaleMapping: {self.source!r} has {self.channels} channels, so scales must have "
                f"a last dimension of {self.channels}, got shape {tuple(scales.shape)}"
            )
        if not (torch.isfinite(scales) & (scales > 0)).all():
            bad = int((~(torch.isfinite(scales) & (scales > 0))).sum())
            raise ValueError(
                f"ScaleMapping: scales of {self.source!r} must be positive and finite; {bad} are "
                "not. Set them to 1 to leave a channel as it is"
            )
        t = scales.new_zeros(*scales.shape[:-1], self.group.dimension)
        t[..., torch.from_numpy(self.generators)] = -self.sign * torch.log(scales)
        return t

    def scale(self, target: nn.Module | Tensor, scales: Tensor, **options):
        """The equivalent model, or point, whose channels are divided by scales at the source.

        Args:
            target: A model with the group's layout, or a point of shape ``(..., n)``.
            scales: See :meth:`coordinates`.
            options: Those of :func:`~quotientnet.transform`, for a model.

        Returns:
            A model or a point; the function is the same.

        Raises:
            TypeError: Options for a point, or ``scales`` that are no real numbers.
        """
        t = self.coordinates(scales)
        if isinstance(target, Tensor):
            if options:
                raise TypeError(
                    f"ScaleMapping.scale: {', '.join(options)} is for a model; a point has no "
                    "outputs to compare and no optimizer. Pass the model, or leave it out"
                )
            return self.group.act(target, t)
        return transform(target, self.group, t, **options)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


class ScaleMappings(Sequence):
    """All mappings of a symmetry, in the order in which the module uses their sources.

    Printed, it is a table. ``mappings["layers.0.norm"]`` is the mapping with this source,
    ``mappings["attn -> proj"]`` that with this source and first target, ``mappings[0]`` the first.
    """

    def __init__(self, group: ScalingGroup, mappings: Sequence[ScaleMapping]):
        self.group, self._mappings = group, tuple(mappings)

    def __len__(self) -> int:
        return len(self._mappings)

    def __getitem__(self, key) -> ScaleMapping:
        if not isinstance(key, str):
            return self._mappings[key]
        source, arrow, target = key.partition(" -> ")
        found = [
            m
            for m in self
            if m.source == source
            and (not arrow or target in [_module(p.parameter) for p in m.targets])
        ]
        if len(found) != 1:
            like = ", ".join(
                repr(f"{m.source} -> {_module(m.targets[0].parameter)}")
                for m in (found or self)
            )
            raise KeyError(
                f"{len(found)} mappings are called {key!r}; there are {like}"
            )
        return found[0]

    def coordinates(self, scales: Mapping[str, Tensor]) -> Tensor:
        """The group element of scales for several mappings at once.

        Args:
            scales: By mapping, as in ``mappings[...]``: shape ``(channels,)`` each.

        Raises:
            TypeError: No dict.
        """
        if not isinstance(scales, Mapping):
            raise TypeError(
                "ScaleMappings.coordinates: scales must be a dict from a mapping's name to its "
                f"scales, got {type(scales).__name__}"
            )
        t = torch.zeros(self.group.dimension, dtype=torch.float64)
        return sum((self[key].coordinates(s) for key, s in scales.items()), t)

    def __str__(self) -> str:
        width = max([len(text) for m in self for text in _texts(m.sources)] + [6])
        head = [f"{'source':<{width}}  channels  target"]
        return "\n".join(head + [line for m in self for line in _lines(m, width)])

    def __repr__(self) -> str:
        return f"ScaleMappings({', '.join(repr(m.source) for m in self)})"


def scale_mappings(symmetry: Symmetry | ScalingGroup) -> ScaleMappings:
    r"""The layers between which scales of channels can be moved, derived from a symmetry.

    Dividing a channel by a scale where it arises and multiplying by it where it is read leaves the
    function unchanged. Smoothing of activations before rounding (Eq. (3) of [Xiao2023]_) and
    activation-aware scaling of weights ([Lin2024]_, Sec. 3.2) are such moves, from a
    normalisation's weight or a projection's rows to the columns that read them. A mapping is all
    generators that scale the same rows and columns; no architecture is known by name. Generators
    that scale in one direction only, such as filters before a normalisation, are no mapping.

    Args:
        symmetry: What :func:`~quotientnet.discover` returned, or a group (whose layout then has
            to have sources before targets).

    Returns:
        The mappings; ``print`` them for a table. Channels are in the order of the source.

    Raises:
        TypeError: Neither a symmetry nor a group.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> mappings = qn.scale_mappings(qn.discover(model, torch.randn(5, 4)))
        >>> print(mappings)
        source                     channels  target
        rows of 0.weight and bias         3  columns of 2.weight
        >>> twin = mappings[0].scale(model, torch.tensor([2.0, 1.0, 1.0]))
        >>> bool(torch.allclose(2 * twin[0].bias[0], model[0].bias[0]))
        True
    """
    group = as_group(symmetry, "scale_mappings")
    order = getattr(symmetry, "order", ()) or group.layout.names
    links = _links(group, order)
    touched: list[list[tuple[int, int]]] = [[] for _ in range(group.dimension)]
    for number, link in enumerate(links):
        generators, first = np.unique(link.generators.reshape(-1), return_index=True)
        for generator, place in zip(generators.tolist(), first.tolist()):
            if generator >= 0:
                touched[generator].append((number, place))
    alike: dict[tuple, list[tuple[int, int]]] = {}
    for generator, found in enumerate(touched):
        if len({links[n].exponent > 0 for n, _ in found}) == 2:
            head, place = min(found, key=lambda at: (_when(links, at[0]), at[1]))
            key = (head, *(n for n, _ in found))
            alike.setdefault(key, []).append((place, generator))
    mappings = [
        _mapping(group, links[head], [links[n] for n in numbers], sorted(channels))
        for (head, *numbers), channels in sorted(
            alike.items(), key=lambda item: item[0][0]
        )
    ]
    return ScaleMappings(group, mappings)


def _links(group: ScalingGroup, order: Sequence[str]) -> list[Link]:
    """The links of parameters, in the order of their first use."""
    when: dict[str, int] = {}
    for number, name in enumerate(order):
        when.setdefault(_module(name), number)
    links = links_of(group.layout, group.incidence, group.classes)
    links = [link for link in links if not group.layout[link.parameter].passive]
    return sorted(links, key=lambda link: when.get(_module(link.parameter), len(order)))


def _when(links: Sequence[Link], number: int) -> int:
    """The first link of the same parameter: both sides may be in one, as queries and keys."""
    names = [link.parameter for link in links[: number + 1]]
    return names.index(names[-1])


def _mapping(group, head: Link, links: Sequence[Link], channels) -> ScaleMapping:
    generators = np.array([generator for _, generator in channels])
    number = np.full(group.dimension + 1, -1)
    number[generators] = np.arange(len(generators))
    sign = 1 if head.exponent > 0 else -1
    parts = [
        Part(
            link.parameter, link.axes, -sign * link.exponent, number[link.generators],
            len(group.layout[link.parameter].shape),
        )
        for link in links
    ]  # fmt: skip
    return ScaleMapping(
        _module(head.parameter),
        tuple(p for p in parts if p.exponent < 0),
        tuple(p for p in parts if p.exponent > 0),
        generators,
        sign,
        group,
    )


def _real(scales, source: str) -> Tensor:
    """Scales as a tensor of real numbers."""
    try:
        found = torch.as_tensor(scales)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.is_complex() or found.dtype == torch.bool:
        got = type(scales).__name__ if found is None else found.dtype
        raise TypeError(
            f"ScaleMapping: scales of {source!r} must be real numbers, one a channel, got {got}"
        )
    return found


def _module(parameter: str) -> str:
    """The module of a parameter, or itself where its name says more."""
    stem, _, member = parameter.rpartition(".")
    return stem if stem and member in ("weight", "bias") else parameter


def _texts(parts: Sequence[Part]) -> list[str]:
    """One line a part; a weight and a bias of one module on one."""
    texts: list[str] = []
    for part in parts:
        stem = part.parameter.removesuffix(".bias")
        both = [f"{role}{part.range} of {stem}.weight" for role in ("rows", "entries")]
        own = f"entries{part.range} of {stem}.bias"
        if str(part) == own and texts and texts[-1] in both:
            texts[-1] += " and bias"
        else:
            texts.append(str(part))
    return texts


def _lines(mapping: ScaleMapping, width: int = 0) -> list[str]:
    left, right = _texts(mapping.sources), _texts(mapping.targets)
    width = max([width, *map(len, left)])
    lines = []
    for i in range(max(len(left), len(right))):
        a, b = (side[i] if i < len(side) else "" for side in (left, right))
        count = str(mapping.channels) if i == 0 else ""
        lines.append(f"{a:<{width}}  {count:>8}  {b}".rstrip())
    return lines
