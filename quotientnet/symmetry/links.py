"""Which generator scales what: the table behind a group, and a name for each generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from quotientnet.group import ScalingGroup
from quotientnet.layout import ParameterLayout
from quotientnet.units import Term

__all__ = ["Link", "Naming", "arrangement", "links_of", "named_group"]

_LISTED = 6
"""At most this many parts are spelled out in a name."""


@dataclass(frozen=True, eq=False)
class Link:
    """The generators that scale a parameter along some of its axes.

    Attributes:
        parameter: Its name.
        axes: The axes along which the generators differ; none if one scales the whole tensor.
        exponent: A generator ``t`` scales the entry by ``e^{exponent t}``.
        generators: The number of the generator at each place along ``axes``, −1 where none.
    """

    parameter: str
    axes: tuple[int, ...]
    exponent: int
    generators: np.ndarray


def links_of(
    layout: ParameterLayout,
    incidence: Mapping[str, Sequence[Term]],
    classes: sparse.csr_array,
) -> list[Link]:
    """The links of a group, in the order of the layout."""
    counts = np.diff(classes.indptr)
    links = []
    for entry in layout.entries:
        for term in incidence.get(entry.name, ()):
            index = term.index.reshape([term.index.shape[a] for a in term.axes])
            for rank in range(int(counts[index].max(initial=0))):
                present = counts[index] > rank
                place = np.minimum(classes.indptr[index] + rank, classes.nnz - 1)
                exponents = np.where(present, classes.data[place] * term.coefficient, 0)
                for exponent in np.unique(exponents[present]).tolist():
                    generators = np.where(
                        exponents == exponent, classes.indices[place], -1
                    )
                    links.append(_link(entry.name, term.axes, exponent, generators))
    return links


def _link(
    name: str, axes: tuple[int, ...], exponent: int, generators: np.ndarray
) -> Link:
    """A link along the axes that generators differ along."""
    kept = []
    for axis in axes:
        first = generators.take([0], len(kept))
        if (generators == first).all():
            generators = generators.take(0, len(kept))
        else:
            kept.append(axis)
    return Link(name, tuple(kept), exponent, generators)


@dataclass(frozen=True)
class Naming:
    """Where a generator acts.

    Attributes:
        place: The layer whose output it scales.
        channel: The channel of that layer; ``None`` if it scales all.
        parts: What it scales, in words.
        normalised: Whether it scales parameters in one direction only, as filters before a
            normalisation.
    """

    place: str
    channel: int | None
    parts: str
    normalised: bool

    def __str__(self) -> str:
        channel = "" if self.channel is None else f" channel {self.channel}"
        return f"{self.place}{channel}: {self.parts}"


def named_group(
    layout: ParameterLayout,
    incidence: Mapping[str, Sequence[Term]],
    classes: sparse.csr_array,
) -> tuple[ScalingGroup, list[Naming]]:
    """The group with a name for each generator, in the order of what they scale upwards first.

    Generators that scale nothing are left out. A generator that divides more tensors than it
    multiplies is replaced by its inverse.
    """
    order, sign = arrangement(layout, incidence, classes)
    classes = sparse.csr_array(
        classes[:, order] @ sparse.diags_array(sign, dtype=np.int64)
    )
    namings = _namings(layout, links_of(layout, incidence, classes), len(order))
    return ScalingGroup(layout, incidence, classes, [str(n) for n in namings]), namings


def arrangement(
    layout: ParameterLayout,
    incidence: Mapping[str, Sequence[Term]],
    classes: sparse.csr_array,
) -> tuple[np.ndarray, np.ndarray]:
    """The columns of ``classes`` that become generators, in order, and the sign of each."""
    first, sign = np.full(classes.shape[1], np.inf), np.zeros(
        classes.shape[1], dtype=np.int64
    )
    links = links_of(layout, incidence, classes)
    for link in links:
        generators = np.unique(link.generators)
        sign[generators[generators >= 0]] += np.sign(link.exponent)
    sign = np.where(sign < 0, -1, 1)
    for link in links:
        entry, flat = layout[link.parameter], link.generators.reshape(-1)
        hit = flat >= 0
        place = entry.start + np.arange(len(flat)) * (entry.numel / max(len(flat), 1))
        upwards = link.exponent * sign[flat[hit]] > 0
        np.minimum.at(first, flat[hit], np.where(upwards, 0, layout.size) + place[hit])
    order = np.argsort(first, kind="stable")
    order = order[np.isfinite(first[order])]
    return order, sign[order]


def _namings(
    layout: ParameterLayout, links: Sequence[Link], count: int
) -> list[Naming]:
    """A description of each generator."""
    found = [
        np.unique(link.generators.reshape(-1), return_index=True) for link in links
    ]
    generators = np.concatenate([own for own, _ in found] or [np.empty(0, np.int64)])
    places = np.concatenate([first for _, first in found] or [np.empty(0, np.int64)])
    numbers = np.repeat(np.arange(len(links)), [len(own) for own, _ in found])
    order = np.argsort(generators, kind="stable")
    starts = np.searchsorted(generators[order], np.arange(count + 1)).tolist()
    numbers, places = numbers[order], places[order].tolist()
    texts: dict[bytes, tuple] = {}
    namings = []
    for start, stop in zip(starts, starts[1:]):
        key = numbers[start:stop].tobytes()
        if key not in texts:
            own = [links[n] for n in numbers[start:stop].tolist()]
            texts[key] = (*_text(layout, own), own)
        where, head, parts, normalised, own = texts[key]
        channel = places[start + head] if len(own[head].axes) == 1 else None
        namings.append(Naming(where, channel, parts, normalised))
    return namings


def _text(layout: ParameterLayout, links: Sequence[Link]) -> tuple[str, int, str, bool]:
    """The place of generators, the link that counts their channels, their parts, their kind."""
    own = [i for i, link in enumerate(links) if not layout[link.parameter].passive]
    signs = {links[i].exponent > 0 for i in own}
    heads = [i for i in own if links[i].exponent > 0 and len(links[i].axes) == 1]
    head = (heads or own or [0])[0]
    where = links[head].parameter
    prefix, _, member = where.rpartition(".")
    where = prefix if prefix and member in ("weight", "bias") else where
    parts: list[str] = []
    for text, parameter in dict.fromkeys(
        (_part(layout, link), link.parameter) for link in links
    ):
        stem, _, last = parameter.rpartition(".")
        # "rows of fc.weight" and "entries of fc.bias" are "rows of fc.weight and bias".
        if parts and stem and text == f"entries of {parameter}":
            if parts[-1] in (f"rows of {stem}.weight", f"entries of {stem}.weight"):
                parts[-1] += f" and {last}"
                continue
        parts.append(text)
    if len(parts) > _LISTED:
        parts = [*parts[: _LISTED - 1], f"{len(parts) - _LISTED + 1} more"]
    return where, head, ", ".join(parts), len(signs) == 1


def _part(layout: ParameterLayout, link: Link) -> str:
    dims = len(layout[link.parameter].shape)
    role = {(): "all", (0,): "rows" if dims > 1 else "entries"}.get(
        link.axes, "entries"
    )
    role = (
        "columns" if link.axes == (1,) or (dims > 1 and link.axes == (0, 1)) else role
    )
    usual = -1 if role == "columns" else 1
    extra = "" if link.exponent == usual else f" (exponent {link.exponent})"
    return f"{role} of {link.parameter}{extra}"
