"""What a method of optimisation is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from quotientnet.optimization.problem import Problem
from quotientnet.optimization.rows import Iterate, Rows

__all__ = ["Method", "Step"]


@dataclass(frozen=True)
class Step:
    """The result of one iteration, for each row.

    Attributes:
        there: The new iterates.
        memory: What the next iteration needs.
        stuck: Where no better point was found and none will be.
        finite: Where the function was finite somewhere near; tells why a row is stuck.
    """

    there: Iterate
    memory: Rows
    stuck: Tensor
    finite: Tensor


class Method(ABC):
    """An iteration that decreases a function from many points at once."""

    @abstractmethod
    def begin(self, problem: Problem, start: Iterate) -> Rows:
        """The memory at the start, one row for each point."""

    @abstractmethod
    def step(self, problem: Problem, here: Iterate, memory: Rows) -> Step:
        """One iteration from all the points that are still active."""
