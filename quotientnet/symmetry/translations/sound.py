"""Whether translations leave a model unchanged, tried out in full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from quotientnet.options import seeded
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.replica import Replica, relative_change, shapes_of
from quotientnet.symmetry.sound import (
    Soundness,
    Worst,
    accepts,
    distinct_modes,
    in_mode,
    require_trials,
    several_inputs,
)
from quotientnet.symmetry.translations.translation import Translation

__all__ = ["verify_translations", "translations_of"]


def verify_translations(
    model: nn.Module,
    symmetry: Symmetry | Iterable[Translation],
    example_inputs: Tensor | Sequence | Mapping,
    *,
    second_inputs: Tensor | Sequence | Mapping | None = None,
    modes: Sequence[str] = ("own",),
    samples: int = 3,
    tolerance: float = 1e-9,
    seed: int = 0,
) -> Soundness:
    """Try translations on a model: do random ones leave outputs and running statistics unchanged?

    As :func:`~quotientnet.verify_sound` does for a group: in float64, on the model's own parameters
    and on random ones, on inputs of two shapes. All translations are applied, one after another,
    with coefficients of sizes 1, 10 and 0.01 in turn.

    Args:
        model: Any module.
        symmetry: What ``discover`` returned, or some of its translations.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments.
        second_inputs: Inputs of another shape; by default the example with one more sample.
        modes: Which to try, of ``"own"``, ``"train"`` and ``"eval"``. Dropout does not commute with
            a shift, so that what holds in eval mode need not hold in train mode.
        samples: Random translations for each mode and inputs.
        tolerance: Largest relative change of an output; each feature counts by its own size.
        seed: Of coefficients, random parameters and random inputs.

    Returns:
        The largest violation; if there is one, the name of a translation that is to blame.

    Raises:
        TypeError: ``symmetry`` has no translations.
        ValueError: The model does not run on the inputs, or the translations are another model's.
            An unknown mode or none, no samples, or a tolerance that is negative or NaN.

    Note:
        ``2 · samples`` forwards for each of three inputs, in each mode.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
        >>> x = torch.randn(5, 4)
        >>> qn.symmetry.verify_translations(model, qn.discover(model, x), x).holds
        True
    """
    caller = "verify_translations"
    translations, layout = translations_of(symmetry, caller)
    require_trials(caller, modes, samples, tolerance)
    replica = Replica(model, layout, caller)
    generator = seeded(seed, caller)
    elsewhere = replica.random_point(generator)
    cases = list(several_inputs(example_inputs, second_inputs, generator, caller))
    if second_inputs is None and not accepts(replica, cases[-1][1]):
        cases.pop()
    worst, checked = Worst(tolerance), []
    for mode in distinct_modes(model, modes):
        for number, (label, inputs) in enumerate(cases):
            checked.append(f"{mode} mode, {label}")
            trial = replica, mode, inputs, elsewhere if number == 1 else replica.w
            for sample in range(samples):
                moves = _moves(translations, _SIZES[sample % 3], generator)
                blame = partial(_blamed, *trial, moves, tolerance)
                worst.see(_violation(*trial, moves), blame)
    return Soundness(worst.violation, tolerance, worst.blamed, tuple(checked), None)


_SIZES = (1.0, 10.0, 0.01)


def _moves(translations, size: float, generator: torch.Generator) -> list[tuple]:
    """Each translation with random coefficients of a size."""
    return [
        (t, size * torch.randn(t.dimension, generator=generator)) for t in translations
    ]


def translations_of(symmetry, caller: str):
    """Translations and their layout."""
    translations = symmetry.translations if isinstance(symmetry, Symmetry) else symmetry
    try:
        translations = tuple(translations)
    except TypeError:
        translations = (None,)
    if not all(isinstance(t, Translation) for t in translations):
        raise TypeError(
            f"{caller}: needs what discover returned, or its translations, got "
            f"{type(symmetry).__name__}"
        )
    if isinstance(symmetry, Symmetry):
        return translations, symmetry.group.layout
    if not translations:
        raise ValueError(f"{caller}: got no translations")
    return translations, translations[0].field.layout


def _moved(w: Tensor, moves) -> Tensor:
    for translation, s in moves:
        w = translation.act(w, s.to(w))
    return w


def _violation(replica: Replica, mode: str, inputs, w: Tensor, moves) -> float:
    count = replica.layout.parameter_size
    with in_mode(replica.model, mode):
        here, statistics = replica.run(w, *inputs)
        there, after = replica.run(_moved(w, moves), *inputs)
    if not any(torch.isfinite(y).any() for y in here):
        raise ValueError(
            "verify_translations: no output of the model is finite on inputs of shape "
            f"{shapes_of(inputs)}"
        )
    expected = _moved(torch.cat([w[:count], statistics]), moves)[count:]
    pairs = [*zip(here, there), (expected, after)]
    return max(relative_change(a, b) for a, b in pairs)


def _blamed(replica, mode: str, inputs, w: Tensor, moves, tolerance: float) -> str:
    for translation, s in moves:
        violation = _violation(replica, mode, inputs, w, [(translation, s)])
        if not violation <= tolerance / 2:
            return f"{translation.name!r} changes outputs by {violation:.1e} in {mode} mode"
    return "several together"
