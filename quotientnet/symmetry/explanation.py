"""What ``discover`` returns: a group, and an account of everything that limits it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from quotientnet.group import ScalingGroup
from quotientnet.symmetry.coarsest import layer_scale_group
from quotientnet.symmetry.epsilon import Approximation
from quotientnet.symmetry.links import Link, Naming, links_of
from quotientnet.symmetry.translations import Translation

__all__ = ["Symmetry", "Pinned", "Coverage"]


@dataclass(frozen=True)
class Pinned:
    """Output channels of a layer that cannot be scaled.

    Attributes:
        place: The layer.
        channels: Their numbers.
        operation: The operation that pinned them, and where it is.
    """

    place: str
    channels: tuple[int, ...]
    operation: str


@dataclass(frozen=True)
class Coverage:
    """How the calls of an operation were treated.

    Attributes:
        operation: Its name.
        treatment: ``"rule"``; ``"pins"`` where a rule says that nothing scales; ``"constant"``
            where it only handles constants; ``"unknown"`` where there is no rule and so everything
            it touches was pinned.
        calls: How often it is called.
        places: The modules that call it.
        reason: What its rule does, or why it pins; empty without a rule.
    """

    operation: str
    treatment: str
    calls: int
    places: tuple[str, ...]
    reason: str = ""


class Found:
    """What every account of a symmetry has: a group, and the mode of the module it is of."""

    group: ScalingGroup
    training: bool

    @cached_property
    def layer_scales(self) -> ScalingGroup:
        """The coarsest subgroup, whose exponents are uniform on each tensor."""
        return layer_scale_group(self.group)

    @cached_property
    def table(self) -> tuple[Link, ...]:
        """For each parameter and axes, the generators that scale it along these."""
        return tuple(
            links_of(self.group.layout, self.group.incidence, self.group.classes)
        )

    def facts(self) -> dict:
        """What its JSON says of the group."""
        links = [
            {
                "parameter": link.parameter, "axes": link.axes, "exponent": link.exponent,
                "generators": link.generators.tolist(),
            }
            for link in self.table
        ]  # fmt: skip
        return {
            "dimension": self.group.dimension, "training": self.training,
            "generators": list(self.group.names), "table": links,
        }  # fmt: skip


@dataclass(frozen=True)
class Symmetry(Found):
    """The scaling group of a module, and why it is not larger. ``print`` it for a summary.

    Attributes:
        group: The group, with a name for every generator.
        namings: Where each generator acts.
        pinned: Channels that cannot be scaled, each with the operation that pinned it.
        approximate: Normalisations whose ``eps`` makes their symmetry approximate.
        coverage: How each operation of the graph was treated.
        training: The mode of the module.
        order: The names of parameters and running statistics, in the order in which the module
            first uses them.
        translations: What can be added to parameters without effect, apart from the group.
    """

    group: ScalingGroup
    namings: tuple[Naming, ...] = field(repr=False)
    pinned: tuple[Pinned, ...] = field(repr=False)
    approximate: tuple[Approximation, ...] = field(repr=False)
    coverage: tuple[Coverage, ...] = field(repr=False)
    training: bool
    order: tuple[str, ...] = field(repr=False, default=())
    translations: tuple[Translation, ...] = field(default=(), repr=False, compare=False)

    @property
    def unknown(self) -> tuple[Coverage, ...]:
        """The operations without a rule; a larger symmetry may hide behind them."""
        return tuple(c for c in self.coverage if c.treatment == "unknown")

    def to_json(self) -> str:
        """Everything as JSON: names, the table of generators, pinned channels, coverage."""
        facts = {
            "pinned": [vars(p) for p in self.pinned],
            "approximate": [vars(a) for a in self.approximate],
            "coverage": [vars(c) for c in self.coverage],
            "translations": [
                {
                    "name": t.name, "dimension": t.dimension, "parameter": t.parameter,
                    "moved": list(t.moved), "absorbed_by": t.absorbed_by,
                }
                for t in self.translations
            ],
        }  # fmt: skip
        return json.dumps(self.facts() | facts)

    def __str__(self) -> str:
        mode = "train" if self.training else "eval"
        lines = [f"{count_of(self.group.dimension, 'generator')} ({mode} mode)"]
        lines += [f"  {line}" for line in units_of(self.namings)]
        if self.translations:
            number = sum(t.dimension for t in self.translations)
            lines.append(f"{count_of(number, 'dimension')} of translations")
            lines += [f"  {t}" for t in self.translations]
        if self.pinned:
            lines.append("pinned channels")
            lines += [
                f"  {p.place}: {_ranges(p.channels)}, by {p.operation}"
                for p in self.pinned
            ]
        if self.approximate:
            lines.append(
                "approximate, by eps (change of a normalised channel when its input is halved)"
            )
            lines += [f"  {_approximation(a)}" for a in self.approximate]
        lines.append("operations")
        lines += [
            f"  {_coverage(c)}" for c in self.coverage if c.treatment != "constant"
        ]
        return "\n".join(lines)


def units_of(namings: Sequence[Naming]) -> list[str]:
    """Generators of one kind and place on one line."""
    units: dict[tuple, list] = {}
    for n in namings:
        units.setdefault(
            (n.place, n.parts, n.normalised, n.channel is None), []
        ).append(n.channel)
    lines = []
    for (place, parts, normalised, whole), channels in units.items():
        where = place if whole else f"{place} {_ranges(channels)}"
        kind = "normalised" if normalised else "rescaled"
        lines.append(f"{len(channels):>5}  {kind:<10}  {where}: {parts}")
    return lines


def count_of(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _ranges(numbers: Sequence[int]) -> str:
    """``channels 0–3, 7`` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    shown = [str(a) if a == b else f"{a}–{b}" for a, b in runs[:8]]
    more = ", …" if len(runs) > 8 else ""
    return f"{'channel' if len(numbers) == 1 else 'channels'} {', '.join(shown)}{more}"


def _approximation(a: Approximation) -> str:
    size = "not measured" if a.size is None else f"{a.size:.1e}"
    return f"{a.place or a.operation} ({a.operation}, eps={a.eps:g}): {size}"


def _coverage(c: Coverage) -> str:
    what = {
        "rule": "", "pins": ": pins",
        "unknown": ": unknown, pins all it touches; teach it with quotientnet.symmetry.rule",
    }[c.treatment]  # fmt: skip
    named = [place for place in c.places if place]
    where = (
        f" in {', '.join(named[:4])}{', …' if len(named) > 4 else ''}" if named else ""
    )
    return f"{c.operation} × {c.calls}{where if c.treatment != 'rule' else ''}{what}"
