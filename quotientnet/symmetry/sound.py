"""Whether a group leaves a model unchanged, tried out on random elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import log

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from quotientnet.group import ScalingGroup, as_group
from quotientnet.options import require_count, require_number, seeded
from quotientnet.symmetry.discover import call_arguments
from quotientnet.symmetry.exactly import Degenerate
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.replica import (
    Replica,
    drawn_again,
    relative_change,
    shapes_of,
)

__all__ = [
    "Soundness", "Trial", "verify_sound", "accepts", "distinct_modes", "in_mode", "require_trials",
    "several_inputs",
]  # fmt: skip


@dataclass(frozen=True)
class Soundness:
    """The outcome of :func:`~quotientnet.verify_sound`.

    Attributes:
        violation: The largest relative change of an output, with normalisations taken exactly.
        tolerance: The largest change allowed.
        generator: The generator that is no symmetry, and what it changes by itself; ``None`` if
            all hold.
        checked: What was tried: modes and shapes of inputs.
        eps_drift: The largest relative change with each normalisation's own ``eps``, under scales
            of up to 2; ``None`` without normalisations.
    """

    violation: float
    tolerance: float
    generator: str | None
    checked: tuple[str, ...]
    eps_drift: float | None

    @property
    def holds(self) -> bool:
        """Whether the violation is within the tolerance; NaN is not."""
        return self.violation <= self.tolerance

    def require(self) -> Soundness:
        """Return the outcome if the group is sound.

        Raises:
            AssertionError: With the generator and the size of the violation.
        """
        if not self.holds:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        if self.holds:
            drift = (
                ""
                if self.eps_drift is None
                else f", by {self.eps_drift:.1e} with its own eps"
            )
            return f"sound: outputs change by {self.violation:.1e} at most{drift}"
        return (
            f"not sound: outputs change by {self.violation:.1e}, tolerance {self.tolerance:.0e}; "
            f"generator {self.generator}"
        )


def verify_sound(
    model: nn.Module,
    group: ScalingGroup | Symmetry,
    example_inputs: Tensor | Sequence | Mapping,
    *,
    second_inputs: Tensor | Sequence | Mapping | None = None,
    modes: Sequence[str] = ("own", "train", "eval"),
    samples: int = 4,
    decades: float = 12.0,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> Soundness:
    """Try a group on a model: do random elements leave outputs and running statistics unchanged?

    The model is copied to float64, and normalisations are taken with an ``eps`` that has no
    effect, so that their symmetries are exact; the effect of their own ``eps`` is measured apart.
    Elements act on the model's own parameters and on random ones, because zeros hide errors.
    Running statistics after a forward in train mode must be those of the moved point.

    Args:
        model: Any module.
        group: A group on its layout, or what ``discover`` returned.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments.
        second_inputs: Inputs of another shape; by default the example with one more sample.
        modes: Which to try: ``"own"`` is the present one of each submodule.
        samples: Group elements for each mode and inputs.
        decades: Scales of a generator range over so many orders of magnitude; over fewer where
            several generators or high exponents would scale one entry by more than their square.
        tolerance: Largest relative change of an output; each feature counts by its own size.
        seed: Of elements, random parameters and random inputs.

    Returns:
        The largest violation; if there is one, the generator that is to blame.

    Raises:
        TypeError: ``model``, ``group`` or inputs of another kind.
        ValueError: The group's layout is not that of the model; the model does not run on the
            inputs, returns nothing finite to compare, or normalises a constant channel.

    Note:
        ``2 · samples + 1`` forwards for each of three inputs, in each mode.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.GELU(), torch.nn.Linear(3, 2))
        >>> layout = qn.ParameterLayout.from_module(model)
        >>> wrong = qn.ScalingGroup.from_units(layout, [
        ...     qn.Unit("hidden", 3, (qn.Scale("0.weight", 0), qn.Scale("2.weight", 1, -1)))])
        >>> qn.verify_sound(model, wrong, torch.randn(5, 4)).holds
        False
    """
    group = as_group(group, "verify_sound")
    require_trials("verify_sound", modes, samples, tolerance, decades)
    generator = seeded(seed, "verify_sound")
    replica = Replica(model, group.layout, "verify_sound")
    own, elsewhere = replica.w, replica.random_point(generator)
    cases = list(
        several_inputs(example_inputs, second_inputs, generator, "verify_sound")
    )
    checked = []
    if second_inputs is None and not accepts(replica, cases[-1][1]):
        checked.append(
            f"{cases.pop()[0]} are refused by the model; pass second_inputs="
        )
    worst, drift = Worst(tolerance), 0.0
    for mode in distinct_modes(model, modes):
        for number, (label, (args, kwargs)) in enumerate(cases):
            checked.append(f"{mode} mode, {label}")
            start = elsewhere if number == 1 else own
            trial = Trial(replica, group, mode, args, kwargs, start)
            for sample in range(samples):
                reach = decades * log(10) / 2 if sample else log(2)
                t = _element(group, reach, generator).to(own.device)
                worst.see(trial.violation(t), partial(trial.blame, t, tolerance))
                if sample == 0 and replica.normalises:
                    drift = max(drift, trial.violation(t, exact=False))
    drift = drift if replica.normalises else None
    return Soundness(
        worst.violation, tolerance, worst.blamed, tuple(checked), drift
    )


@dataclass
class Worst:
    """The worst of several trials, and who is to blame for the first that fails.

    Attributes:
        tolerance: What a trial may change.
        violation: The largest change seen; NaN is larger than any.
        blamed: In words; ``None`` if none failed.
    """

    tolerance: float
    violation: float = 0.0
    blamed: str | None = None

    def see(self, violation: float, blame: Callable[[], str]) -> None:
        """Count a trial; ``blame`` is called if it is the first that fails."""
        if not violation <= self.violation:
            self.violation = violation
            if self.blamed is None and not violation <= self.tolerance:
                self.blamed = blame()


_MODES = ("own", "train", "eval")


def require_trials(
    caller: str, modes: Sequence[str], samples: int, tolerance: float, decades=None
) -> None:
    """Refuse what would try nothing, or could not fail."""
    known = isinstance(modes, (list, tuple)) and all(mode in _MODES for mode in modes)
    if not known or not modes:
        raise ValueError(
            f"{caller}: modes must be some of {_MODES}, in a list, got {modes!r}"
        )
    require_count(samples, caller, "samples")
    require_number(tolerance, caller, "tolerance")
    if decades is not None:
        require_number(decades, caller, "decades", strict=True)


def distinct_modes(model: nn.Module, modes: Sequence[str]) -> list[str]:
    """The modes, without a second one that is the same for every submodule."""
    own = [module.training for module in model.modules()]
    flags = {"own": own, "train": [True] * len(own), "eval": [False] * len(own)}
    return [
        m for i, m in enumerate(modes) if flags[m] not in [flags[n] for n in modes[:i]]
    ]


@dataclass
class Trial:
    """A model in one mode, on one input, from one point."""

    replica: Replica
    group: ScalingGroup
    mode: str
    args: tuple
    kwargs: dict
    start: Tensor

    def violation(
        self, t: Tensor, start: Tensor | None = None, *, exact: bool = True
    ) -> float:
        """The largest relative change from a point to its image."""
        start = self.start if start is None else start
        count = self.group.layout.parameter_size
        try:
            here, statistics = self._run(start, exact)
            there, moved = self._run(self.group.act(start, t), exact)
        except Degenerate as error:
            raise ValueError(
                f"verify_sound: {error}, and rounding decides the result; pass other inputs "
                f"(these: {shapes_of(self.args, self.kwargs)}, {self.mode} mode)"
            ) from error
        if not any(torch.isfinite(y).any() for y in here):
            raise ValueError(
                "verify_sound: no output of the model is finite on these inputs"
            )
        expected = self.group.act(torch.cat([start[:count], statistics]), t)[count:]
        pairs = [*zip(here, there), (expected, moved)]
        return max(relative_change(a, b) for a, b in pairs)

    def _run(self, w: Tensor, exact: bool):
        with in_mode(self.replica.model, self.mode):
            return self.replica.run(w, self.args, self.kwargs, exact=exact)

    def blame(self, t: Tensor, tolerance: float) -> str:
        """A generator that alone changes the outputs: half of those that do, until one is left."""
        support, start = torch.arange(self.group.dimension, device=t.device), self.start
        while len(support) > 1:
            first, second = support[: len(support) // 2], support[len(support) // 2 :]
            # If neither half moved the outputs, the first at start and the second after it, nor
            # would both together.
            part = torch.zeros_like(t).index_copy(0, first, t[first])
            if not self.violation(part, start) <= tolerance / 2:
                support = first
            else:
                start, support = self.group.act(start, part), second
        part = torch.zeros_like(t).index_copy(0, support, t[support])
        change, name = self.violation(part, start), self.group.names[int(support)]
        return (
            f"{name!r}, scaled by {float(t[support].exp()):.1e}, changes outputs by {change:.1e} "
            f"in {self.mode} mode"
        )


@contextmanager
def in_mode(model: nn.Module, mode: str):
    """Every submodule in ``"train"`` or ``"eval"`` mode, or in its ``"own"``, for a while."""
    own = [module.training for module in model.modules()]
    if mode != "own":
        model.train(mode == "train")
    try:
        yield
    finally:
        for module, training in zip(model.modules(), own):
            module.training = training


def accepts(replica: Replica, inputs: tuple[tuple, dict]) -> bool:
    """Whether the model runs on inputs that nobody promised it would."""
    try:
        replica.run(replica.w, *inputs)
    except ValueError:
        return False
    except Degenerate:
        return True
    return True


def _element(group: ScalingGroup, reach: float, generator: torch.Generator) -> Tensor:
    """Random coordinates within ``±reach``; smaller if an entry would move by more than twice."""
    t = 2 * torch.rand(group.dimension, generator=generator, dtype=torch.float64) - 1
    largest = float(group.exponents(t).abs().amax()) if group.dimension else 0.0
    return reach * t / max(largest / 2, 1.0)


def several_inputs(
    example, second, generator: torch.Generator, caller: str
) -> Iterator[tuple[str, tuple[tuple, dict]]]:
    """The example, random numbers in its place, and inputs of another shape."""
    example = call_arguments(example, caller)

    def longer(x: Tensor) -> Tensor:
        return (
            torch.cat([x, drawn_again(x[:1], generator).to(x.dtype)]) if x.ndim else x
        )

    yield f"inputs {shapes_of(example)}", example
    drawn = tree_map_only(Tensor, lambda x: drawn_again(x, generator), example)
    yield f"random inputs {shapes_of(example)}", drawn
    if second is None:
        second = tree_map_only(Tensor, longer, example)
    else:
        second = call_arguments(second, caller)
    yield f"inputs {shapes_of(second)}", second
