"""Test cases of all that can be said of a model, for ``pytest.mark.parametrize``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import geoopt
from torch import Tensor, nn

from quotientnet.group import as_group
from quotientnet.manifolds import NodeWiseQuotient
from quotientnet.objective import Objective
from quotientnet.options import require_kind, require_seed
from quotientnet.sharpness.catalogue import couples_samples
from quotientnet.symmetry import discover, verify_complete, verify_sound
from quotientnet.symmetry.replica import require_layout
from quotientnet.testing.group_laws import GROUP_LAWS
from quotientnet.testing.laws import Verdict, check_laws
from quotientnet.testing.manifold_laws import applies, laws_of
from quotientnet.testing.measure_laws import check_invariance
from quotientnet.testing.number_laws import check_batches
from quotientnet.testing.precision import check_precision
from quotientnet.testing.profiles import Profile, profile_named

__all__ = ["Case", "conformance"]

MEASURES = (
    "node-wise spectral norm",
    "normalised sharpness",
    "minimum sharpness",
)
"""The measures that are tried unless others are chosen; all of them are invariant."""

COMPLETE = 5000
"""Up to this many parameters a group is also compared with all scalings there are."""


@dataclass(frozen=True)
class Case:
    """One thing to test; nothing is computed before :meth:`require`.

    Attributes:
        name: What it is about, for reports of tests: ``str(case)``.
        verify: What returns an outcome with ``holds`` and ``require``.
    """

    name: str
    verify: Callable[[], object]

    def __str__(self) -> str:
        return self.name

    def require(self):
        """Return the outcome if it holds.

        Raises:
            AssertionError: It does not; the message has the law, the violation and the seed.
            Exception: What the model raises.
        """
        return self.verify().require()


def conformance(
    model: nn.Module,
    inputs: Tensor | tuple | Mapping,
    *,
    data=None,
    loss: Callable | None = None,
    symmetry=None,
    manifold=None,
    measures: Iterable | Mapping[str, Callable] | None = None,
    profile: str | Profile = "quick",
    seed: int = 0,
) -> list[Case]:
    """The cases of a model: five lines test it.

    .. code-block:: python

       import pytest
       from quotientnet.testing import conformance
       from mine import inputs, model

       @pytest.mark.parametrize("case", conformance(model, inputs), ids=str)
       def test_model(case):
           case.require()

    The cases are: the group that is derived leaves the model unchanged; up to 5,000 parameters, it
    is all there is; the laws of that group; the laws of the manifold; and with ``data`` and
    ``loss``, for each measure whether it is as invariant as it claims to be, whether numbers in
    float32 are near those in float64, and whether a split of the data changes any, which it does
    with batch normalisation in train mode.

    Args:
        model: Any module that ``discover`` takes; nothing of it is changed.
        inputs: Example inputs, as ``discover`` takes them.
        data: What :class:`~quotientnet.Objective` takes: inputs and targets, or a loader.
        loss: Of outputs and targets.
        symmetry: A group, or what ``discover`` returned, to be tested in place of the derived one.
        manifold: The quotient to be tested, by default ``NodeWiseQuotient`` of the group. Any
            manifold of flat vectors; one of your own, or on the model's
            :class:`~quotientnet.ParameterLayout`.
        measures: Labels of the report, or your own ``{name: function(point, group)}``; by default
            three that are invariant.
        profile: ``"quick"``, ``"ci"``, ``"thorough"`` or a :class:`~quotientnet.testing.Profile`.
        seed: Of everything random.

    Returns:
        The cases, in the order above. Collecting them costs what ``discover`` costs.

    Raises:
        TypeError: A model, manifold, symmetry or seed that is none.
        ValueError: ``data`` without ``loss`` or the other way round, measures without both, another
            profile; what ``discover`` and the manifold refuse.
    """
    chosen = profile_named(profile, "conformance")
    if (data is None) != (loss is None) or (measures is not None and data is None):
        raise ValueError(
            "conformance: measures need data and loss, both of them: data=(inputs, targets), "
            "loss=nn.CrossEntropyLoss()"
        )
    require_seed(seed, "conformance")
    symmetry = discover(model, inputs) if symmetry is None else symmetry
    group = as_group(symmetry, "conformance")
    require_layout(model, group.layout, "conformance")
    if manifold is not None:
        remedy = "such as NodeWiseQuotient(symmetry), an object and not the class"
        require_kind(manifold, geoopt.Manifold, "conformance", "manifold", remedy)
    cases = [
        Case("symmetry is sound", lambda: verify_sound(model, group, inputs, seed=seed))
    ]
    if group.layout.parameter_size <= COMPLETE:
        cases.append(
            Case(
                "symmetry is complete",
                lambda: verify_complete(model, group, inputs, seed=seed),
            )
        )
    if manifold is None:
        manifold = NodeWiseQuotient(group)
    drawn = cache(lambda: chosen.samples(manifold, seed))
    if group.dimension and getattr(manifold, "group", None) is not None:
        cases += [_of_law("group", law, drawn) for law in GROUP_LAWS.values()]
    name = type(manifold).__name__
    cases += [_of_law(name, law, drawn) for law in laws_of(manifold).values()]
    if data is not None and group.dimension:
        cases += list(_of_measures(model, loss, data, group, measures, chosen, seed))
    if data is not None:
        cases += list(_of_numbers(model, loss, data, group, seed))
    return cases


def _of_law(subject: str, law, drawn) -> Case:
    def verify() -> Verdict:
        verdicts = check_laws([law], drawn(), applies)
        return (
            verdicts[0]
            if verdicts
            else Verdict(law.name, 0.0, 0.0, 0, "no sample", tried=0)
        )

    return Case(f"{subject}: {law.name.replace('_', ' ')}", verify)


def _of_numbers(model, loss, data, group, seed: int):
    @cache
    def point():
        objective = Objective(model, loss, data)
        return objective.at(objective.layout.flatten(model))

    def verify() -> Verdict:
        return check_precision(point(), group, seed=seed)

    yield Case("numbers: float32 is near float64", verify)
    if not couples_samples(model):
        name = "numbers: splits of the data change nothing"
        yield Case(name, lambda: check_batches(point(), seed=seed))


def _of_measures(model, loss, data, group, measures, profile: Profile, seed: int):
    @cache
    def point():
        objective = Objective(model, loss, data)
        return objective.at(objective.layout.flatten(model))

    chosen = MEASURES if measures is None else measures
    named = chosen.items() if isinstance(chosen, Mapping) else ((m, m) for m in chosen)
    for name, measure in named:

        def verify(measure=measure) -> Verdict:
            return check_invariance(
                measure, point(), group, points=profile.elements, seed=seed
            )

        yield Case(f"measure: {getattr(name, 'label', name)}", verify)
