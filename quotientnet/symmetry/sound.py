"""Whether a group leaves a model unchanged, tried out on random elements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from quotientnet.group import ScalingGroup, as_group
from quotientnet.symmetry.discover import call_arguments
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.replica import Replica, drawn_again

__all__ = ["Soundness", "verify_sound"]


@dataclass(frozen=True)
class Soundness:
    """The outcome of :func:`verify_sound`.

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
        where = "; ".join(self.checked)
        if self.holds:
            return f"sound: outputs change by {self.violation:.1e} at most ({where})"
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
    training: Sequence[bool] = (True, False),
    samples: int = 4,
    decades: float = 12.0,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> Soundness:
    """Try a group on a model: do random elements leave outputs and running statistics unchanged?

    The model is copied to float64, with normalisations whose ``eps`` has no effect, so that
    their symmetries are exact; the effect of their own ``eps`` is measured apart. Running
    statistics
    after a forward in train mode must be those of the moved point.

    Args:
        model: Any module.
        group: A group on its layout, or what ``discover`` returned.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments.
        second_inputs: Inputs of another shape; by default the example with one more sample.
        training: The modes to try.
        samples: Group elements for each mode and inputs.
        decades: Scales of a generator range over so many orders of magnitude; over fewer where
            several generators or high exponents would scale one entry by more than their square.
        tolerance: Largest relative change of an output.
        seed: Of elements and random inputs.

    Returns:
        The largest violation; if there is one, the generator that is to blame.

    Raises:
        TypeError: Inputs of another kind.
        ValueError: The group's layout is not that of the model, or there is no output to compare.

    Note:
        ``2 · samples + 1`` forwards for each of the inputs, in each mode.

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
    exact, own = (Replica(model, group.layout, exact=e) for e in (True, False))
    generator = torch.Generator().manual_seed(seed)
    worst, blamed, checked, drift = 0.0, None, [], 0.0
    cases = list(_inputs(example_inputs, second_inputs, seed))
    if second_inputs is None and not _accepts(exact, cases[-1][1]):
        checked.append(
            f"{cases.pop()[0]} are refused by the model; pass second_inputs="
        )
    for mode in training:
        for label, (args, kwargs) in cases:
            checked.append(f"{'train' if mode else 'eval'} mode, {label}")
            for sample in range(samples):
                reach = decades * log(10) / 2 if sample else log(2)
                t = _element(group, reach, generator).to(exact.w.device)
                trial = _Trial(exact, group, mode, args, kwargs)
                violation = trial.violation(t)
                if not violation <= worst and worst <= tolerance:
                    worst = violation
                    if not violation <= tolerance:
                        blamed = trial.blame(t, tolerance)
                if sample == 0 and own.normalisations:
                    drift = max(
                        drift, _Trial(own, group, mode, args, kwargs).violation(t)
                    )
    return Soundness(
        worst, tolerance, blamed, tuple(checked), drift if own.normalisations else None
    )


@dataclass
class _Trial:
    """A model in one mode on one input."""

    replica: Replica
    group: ScalingGroup
    training: bool
    args: tuple
    kwargs: dict

    @torch.no_grad()
    def violation(self, t: Tensor, start: Tensor | None = None) -> float:
        """The largest relative change from ``start``, the model's ``w`` if omitted."""
        self.replica.model.train(self.training)
        w = self.replica.w if start is None else start
        here, statistics = self.replica.run(w, self.args, self.kwargs)
        there, moved = self.replica.run(self.group.act(w, t), self.args, self.kwargs)
        expected = torch.cat([w[: self.group.layout.parameter_size], statistics])
        expected = self.group.act(expected, t)[self.group.layout.parameter_size :]
        pairs = [*zip(here, there), (expected, moved)]
        return max(_change(a, b) for a, b in pairs)

    def blame(self, t: Tensor, tolerance: float) -> str:
        """A generator that alone changes the outputs: half of those that do, until one is left."""
        support, start = (
            torch.arange(self.group.dimension, device=t.device),
            self.replica.w,
        )
        while len(support) > 1:
            first, second = support[: len(support) // 2], support[len(support) // 2 :]
            # If neither half moved the outputs, the first at start and the second after it, nor
            # would both together.
            part = torch.zeros_like(t).index_copy(0, first, t[first])
            if self.violation(part, start) > tolerance:
                support = first
            else:
                start, support = self.group.act(start, part), second
        part = torch.zeros_like(t).index_copy(0, support, t[support])
        change, mode = self.violation(part, start), "train" if self.training else "eval"
        name, scale = self.group.names[int(support)], float(t[support].exp())
        return f"{name!r}, scaled by {scale:.1e}, changes outputs by {change:.1e} in {mode} mode"


def _accepts(replica: Replica, inputs: tuple[tuple, dict]) -> bool:
    """Whether the model runs on inputs that nobody promised it would."""
    try:
        replica.run(replica.w, *inputs)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return False
    return True


def _change(a: Tensor, b: Tensor) -> float:
    """``‖a − b‖/‖a‖``; infinite where it is not finite."""
    if not a.numel():
        return 0.0
    scale = a.abs().amax()
    gap = float((a - b).abs().amax() / scale) if scale > 0 else float(b.abs().amax())
    return gap if gap == gap else float("inf")


def _element(group: ScalingGroup, reach: float, generator: torch.Generator) -> Tensor:
    """Random coordinates within ``±reach``; smaller if an entry would move by more than twice."""
    t = 2 * torch.rand(group.dimension, generator=generator, dtype=torch.float64) - 1
    largest = float(group.exponents(t).abs().amax()) if group.dimension else 0.0
    return reach * t / max(largest / 2, 1.0)


def _inputs(example, second, seed: int) -> Iterator[tuple[str, tuple[tuple, dict]]]:
    """The example, random numbers in its place, and inputs of another shape."""
    generator = torch.Generator().manual_seed(seed)
    example = call_arguments(example, "verify_sound")

    def drawn(x: Tensor) -> Tensor:
        return drawn_again(x, generator)

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, drawn(x[:1]).to(x.dtype)]) if x.ndim else x

    yield f"inputs {_shapes(example)}", example
    yield f"random inputs {_shapes(example)}", tree_map_only(Tensor, drawn, example)
    if second is None:
        second = tree_map_only(Tensor, longer, example)
    else:
        second = call_arguments(second, "verify_sound")
    yield f"inputs {_shapes(second)}", second


def _shapes(inputs) -> str:
    return ", ".join(
        str(tuple(x.shape)) for x in tree_leaves(inputs) if isinstance(x, Tensor)
    )
