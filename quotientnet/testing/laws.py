"""What a law is, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

import torch

from quotientnet.testing.slopes import Slope

__all__ = ["Law", "Verdict", "check_laws", "registry", "worst", "worst_verdict"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one law, on one sample or on the worst of several.

    Attributes:
        law: Its name.
        violation: The relative error measured; for a law on an order, what is missing of it.
            Infinite where the subject raised an exception.
        tolerance: The largest error allowed.
        seed: What the sample was drawn from.
        case: The sample in words.
        reason: What else there is to say: an exception, an order with its window.
        slope: For a law on an order, all that was measured.
        sample: The sample itself, on which the law can be measured again: see :meth:`Law.check`.
        tried: How many samples the verdict is on.
    """

    law: str
    violation: float
    tolerance: float
    seed: int
    case: str = ""
    reason: str = ""
    slope: Slope | None = field(default=None, repr=False)
    sample: object = field(default=None, repr=False, compare=False)
    tried: int = 1

    @property
    def holds(self) -> bool:
        """Whether the violation is within the tolerance; NaN is not."""
        return self.violation <= self.tolerance

    def __str__(self) -> str:
        what = "holds, at most" if self.holds else "violated by"
        where = f", {self.case}" if self.case else ""
        why = f": {self.reason}" if self.reason else ""
        return (
            f"{self.law}: {what} {self.violation:.2e}, tolerance {self.tolerance:.0e} "
            f"(seed {self.seed}{where}){why}"
        )

    def require(self) -> Verdict:
        """Return the verdict if the law holds.

        Raises:
            AssertionError: With the law, the measured violation, the tolerance, the seed and the
                sample.
        """
        if not self.holds:
            raise AssertionError(str(self))
        return self


@dataclass(frozen=True)
class Law:
    """A statement that can be measured.

    Attributes:
        name: In words, with underscores.
        statement: The first line of its documentation.
        measure: From a sample to the relative violation, or to a
            :class:`~quotientnet.testing.Slope`.
        tolerances: The largest violation by dtype; a dtype that is missing is not supported.
        requires: Methods the subject must implement for the law to apply.
    """

    name: str
    statement: str
    measure: Callable[..., float | Slope]
    tolerances: dict[torch.dtype, float]
    requires: tuple[str, ...] = field(default=())

    def check(self, sample) -> Verdict:
        """Measure the law on a sample.

        An exception of the subject is a violation like any other, and told in the verdict.

        Raises:
            NotImplementedError: The subject does not have what the law is about.
        """
        try:
            found, reason = self.measure(sample), ""
        except NotImplementedError:
            raise
        except Exception as error:
            found, reason = inf, f"{type(error).__name__}: {error}"
        slope = found if isinstance(found, Slope) else None
        violation = float(found) if slope is None else slope.violation
        tolerance = self.tolerances[sample.dtype]
        if tolerance and slope is None:
            tolerance = max(tolerance, getattr(sample, "rounding", 0.0))
        return Verdict(
            self.name, violation, tolerance, sample.seed, str(sample),
            reason or (str(slope) if slope else ""), slope, sample,
        )  # fmt: skip


def check_laws(
    laws: Iterable[Law], samples: Iterable, applies: Callable[[Law, object], bool]
) -> list[Verdict]:
    """One verdict for each law that applies to a sample or more: that of the worst.

    Args:
        laws: The laws.
        samples: What to measure them on.
        applies: Whether a law is stated for a sample.
    """
    samples, verdicts = list(samples), []
    for law in laws:
        found = []
        for sample in samples:
            if sample.dtype in law.tolerances and applies(law, sample):
                try:
                    found.append(law.check(sample))
                except NotImplementedError:
                    continue
        if found:
            verdicts.append(worst_verdict(found))
    return verdicts


def worst_verdict(verdicts: list[Verdict]) -> Verdict:
    """The verdict that is furthest beyond its tolerance; NaN is beyond all."""

    def excess(verdict: Verdict) -> float:
        if verdict.violation != verdict.violation:
            return inf
        if not verdict.tolerance:
            return inf if verdict.violation else 0.0
        return verdict.violation / verdict.tolerance

    found = max(verdicts, key=excess)
    tried = sum(verdict.tried for verdict in verdicts)
    return Verdict(**{**vars(found), "tried": tried})


def worst(*violations) -> float:
    """The largest violation, or NaN if one is: Python's ``max`` may pass over it."""
    return float(
        torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in violations]).max()
    )


def registry(laws: dict[str, Law]):
    """A decorator that turns a measuring function into a law in ``laws``."""

    def law(
        double: float = 1e-9,
        single: float | None = 1e-3,
        requires: tuple[str, ...] = (),
    ):
        tolerances = {torch.float64: double}
        if single is not None:
            tolerances[torch.float32] = single

        def register(measure):
            statement = measure.__doc__.strip().splitlines()[0]
            laws[measure.__name__] = Law(
                measure.__name__, statement, measure, tolerances, requires
            )
            return measure

        return register

    return law
