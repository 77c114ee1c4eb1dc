"""What a law is, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

__all__ = ["Law", "Verdict", "registry", "worst"]


@dataclass(frozen=True)
class Verdict:
    """The outcome of one law on one sample.

    Attributes:
        law: Its name.
        violation: The relative error measured.
        tolerance: The largest error allowed.
        seed: What the sample was drawn from.
    """

    law: str
    violation: float
    tolerance: float
    seed: int

    @property
    def holds(self) -> bool:
        """Whether the violation is within the tolerance; NaN is not."""
        return self.violation <= self.tolerance

    def require(self) -> Verdict:
        """Return the verdict if the law holds.

        Raises:
            AssertionError: With the law, the measured violation, the tolerance and the seed.
        """
        if not self.holds:
            raise AssertionError(
                f"{self.law}: violated by {self.violation:.2e}, tolerance {self.tolerance:.0e} "
                f"(seed {self.seed})"
            )
        return self


@dataclass(frozen=True)
class Law:
    """A statement that can be measured.

    Attributes:
        name: In words, with underscores.
        statement: The first line of its documentation.
        measure: From a sample to the relative violation.
        tolerances: The largest violation by dtype; a dtype that is missing is not supported.
        requires: Methods the subject must implement for the law to apply.
    """

    name: str
    statement: str
    measure: Callable[..., float]
    tolerances: dict[torch.dtype, float]
    requires: tuple[str, ...] = field(default=())

    def check(self, sample) -> Verdict:
        """Measure the law on a sample."""
        violation = float(self.measure(sample))
        return Verdict(self.name, violation, self.tolerances[sample.dtype], sample.seed)


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
