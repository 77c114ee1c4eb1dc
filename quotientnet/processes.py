"""Sums over the batches of several processes, in which a failure of one is an error of all."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

import torch
import torch.distributed as dist
from torch import Tensor

from quotientnet.losses import divisor

__all__ = ["Processes", "Summed"]

_SLOT = 1024
"""Bytes of a message that every rank has ready; a longer one takes a second round."""

_REFUSALS = (ValueError, TypeError, NotImplementedError)
"""Errors that say no, as one process would; all others are failures."""


@dataclass(frozen=True)
class Summed:
    """A sum over all batches of all ranks.

    Attributes:
        mean: The sum over its divisor.
        weights: The normalisers that were added up; of one entry None for a sum.
        facts: What each rank has said beside, in the order of ranks.
    """

    mean: Tensor
    weights: list
    facts: list


@dataclass(frozen=True)
class _Message:
    """What a rank tells the others before they add up.

    Attributes:
        call: What it is about to add up.
        same: What must be the same on all ranks, by name; tensors as a few numbers.
        answer: Its own part.
        failure: The class of its error and what it says, or None.
    """

    call: str
    same: dict
    answer: object = None
    failure: tuple[type, str] | None = None


class Processes:
    """The processes over which an objective's batches are spread, or this one alone.

    Every call with the name :meth:`gather` or :meth:`sum` is one of all ranks. Each does its local
    work, then all exchange one short message, and only if all are well and have been asked for the
    same, tensors are added up. So a rank that fails tells the others at their next exchange.

    Args:
        group: None for this process alone; ``"world"``, or a group of ``torch.distributed``.
        device: Where tensors are added up.

    Raises:
        ValueError: ``torch.distributed`` is not initialised; this process is not in the group.
        TypeError: Neither of these.
    """

    def __init__(self, group, device: torch.device):
        self._group, self._device = _checked(group), device

    @property
    def size(self) -> int:
        """The number of ranks."""
        return 1 if self._group is None else dist.get_world_size(self._group)

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return 0 if self._group is None else dist.get_rank(self._group)

    @property
    def several(self) -> bool:
        """Whether there is a group, be it of one rank."""
        return self._group is not None

    def gather(self, call: str, local: Callable, **same) -> list:
        """``local()`` of every rank, in the order of ranks.

        Args:
            call: What is asked for, in words; the same on all ranks.
            local: Returns what can be pickled; must not itself call all ranks.
            same: What must be the same on all ranks, by name: tensors up to rounding.

        Raises:
            RuntimeError: A rank has failed: the message has its number and its error; ranks ask for
                different things; or a rank is lost.
            ValueError: A rank refuses, as one process would; also other classes of refusals.
        """
        if self._group is None:
            return [local()]
        own, marks = None, {}
        try:
            marks = {name: _mark(value) for name, value in same.items()}
            message = pickle.dumps(_Message(call, marks, answer=local()))
        except Exception as error:
            own = error
            message = pickle.dumps(_Message(call, marks, failure=_told(error)))
        heard = self._exchange(call, message, own)
        _raise_failures(heard, own)
        _require_same(heard)
        return [each.answer for each in heard]

    def sum(self, call: str, local: Callable, **same) -> Summed:
        """A sum over the batches of all ranks, over the sum of their normalisers.

        Args:
            call: As in :meth:`gather`.
            local: Returns the sum over this process's batches, zeros if there are none; their
                normalisers; and what else to tell the others.
            same: As in :meth:`gather`.

        Raises:
            RuntimeError: As :meth:`gather`.
            ValueError: As :meth:`gather`, or no batches, or no targets that count, on any rank.
        """
        if self._group is None:
            total, weights, facts = local()
            by = divisor(weights)
            return Summed(total / by, weights, [facts])
        kept = []

        def told():
            total, weights, facts = local()
            kept.append(total)
            return _shortened(weights), (tuple(total.shape), str(total.dtype)), facts

        answers = self.gather(call, told, **same)
        parts, forms, facts = zip(*answers)
        weights = [weight for part in parts for weight in part]
        if len({weight is None for weight in weights}) > 1:
            raise RuntimeError(
                "Objective: the loss is a sum on some ranks and a mean on others; pass the same "
                "loss on all of them"
            )
        if len(set(forms)) > 1:
            raise RuntimeError(
                f"Objective: ranks have {call} in different forms: {', '.join(map(str, forms))}"
            )
        by = divisor(weights)
        return Summed(self.add(kept[0]) / by, weights, list(facts))

    def concatenate(self, call: str, local: Callable, **same) -> tuple[Tensor, list]:
        """The rows that ranks have, in the order of ranks, and the normalisers of their batches.

        Args:
            call: As in :meth:`gather`.
            local: Returns a detached tensor and the normalisers of this process's batches.
            same: As in :meth:`gather`.

        Raises:
            RuntimeError: As :meth:`gather`.
            ValueError: As :meth:`gather`.
        """
        if self._group is None:
            return local()

        def told():
            rows, weights = local()
            return rows.cpu(), _shortened(weights)

        rows, weights = zip(*self.gather(call, told, **same))
        return torch.cat(rows).to(self._device), [w for part in weights for w in part]

    def add(self, x: Tensor) -> Tensor:
        """The sum of all ranks' tensors, the same on all; differentiable, under ``vmap`` too."""
        return x if self._group is None else _Add.apply(x, self)

    def spread(self, w: Tensor) -> Tensor:
        """A point that is the same on all ranks, on its way into their local sums: what comes back
        in a backward pass is the sum over ranks."""
        return w if self._group is None else _Spread.apply(w, self)

    def __getstate__(self):
        if self._group is not None:
            raise TypeError(
                "Objective: process_group belongs to running processes and cannot be pickled; "
                "make the objective anew in each of them"
            )
        return self.__dict__

    def __deepcopy__(self, memo) -> Processes:
        return self

    def _reduced(self, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self._group)
        return total

    def _summed_derivative(self, x: Tensor) -> Tensor:
        self.gather("a derivative of the value", lambda: None, shape=tuple(x.shape))
        return self.add(x)

    def _exchange(self, call: str, message: bytes, own) -> list[_Message]:
        """Every rank's message.

        Raises:
            RuntimeError: A rank is lost.
        """
        try:
            with torch._C._DisableFuncTorch():  # bytes are no part of a derivative
                return [pickle.loads(each) for each in self._bytes_of_all(message)]
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(
                f"Objective: rank {self.rank} of {self.size} has lost another one at "
                f"{call}: it has ended, has not come within the time that "
                f"init_process_group(timeout=...) allows, or makes other calls ({error})"
            ) from (own or error)

    def _bytes_of_all(self, own: bytes) -> list[bytes]:
        room = _SLOT
        while True:
            slot = torch.zeros(8 + room, dtype=torch.uint8)
            slot[:8] = torch.tensor([len(own)]).view(torch.uint8)
            fitting = own[:room]
            slot[8 : 8 + len(fitting)] = torch.frombuffer(
                bytearray(fitting), dtype=torch.uint8
            )
            slot = slot.to(self._device)
            slots = [torch.empty_like(slot) for _ in range(self.size)]
            dist.all_gather(slots, slot, group=self._group)
            slots = [each.cpu() for each in slots]
            lengths = [int(each[:8].view(torch.int64)) for each in slots]
            if max(lengths) <= room:
                return [
                    each[8 : 8 + length].numpy().tobytes()
                    for each, length in zip(slots, lengths)
                ]
            room = max(lengths)


class _Add(torch.autograd.Function):
    """The sum over ranks. Every rank goes on with it alike, so each has its derivative."""

    @staticmethod
    def forward(x, processes):
        return processes._reduced(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.processes = inputs[1]

    @staticmethod
    def backward(ctx, outer):
        return _Spread.apply(outer, ctx.processes), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return _Add.apply(tangent, ctx.processes)

    @staticmethod
    def vmap(info, in_dims, x, processes):
        return _Add.apply(x, processes), in_dims[0]


class _Spread(torch.autograd.Function):
    """The identity; its derivative is the sum over ranks."""

    @staticmethod
    def forward(w, processes):
        return w.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.processes = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, outer):
        # Where this rank's derivative is constant, as without batches, the next one's backward
        # pass must come by here all the same: on other ranks it is not.
        (w,) = ctx.saved_tensors
        return ctx.processes._summed_derivative(outer + w[:0].sum()), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return _Spread.apply(tangent, ctx.processes)

    @staticmethod
    def vmap(info, in_dims, w, processes):
        return _Spread.apply(w, processes), in_dims[0]


def _checked(group):
    if group is None:
        return None
    if isinstance(group, str):
        if group != "world":
            raise ValueError(
                f"Objective: process_group must be 'world' or a ProcessGroup, got {group!r}"
            )
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "Objective: process_group='world' needs torch.distributed.init_process_group(...) "
                "first; torchrun starts the processes"
            )
        group = dist.group.WORLD
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("Objective: this process is not in process_group")
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "Objective: process_group must be 'world' or a torch.distributed.ProcessGroup, got "
            f"{type(group).__name__}"
        )
    return group


def _shortened(weights: list) -> list:
    """The normalisers of some batches as one: of a sum, of a mean, or of nothing."""
    if not weights or weights[0] is None:
        return weights[:1]
    return [float(sum(weights))]


@dataclass(frozen=True)
class _Mark:
    """A few numbers that tell a tensor from others.

    Attributes:
        form: Its shape and dtype.
        numbers: The sum of its entries, that of every second one, and its norm.
        rounding: By how much they may differ where it is the same.
    """

    form: tuple
    numbers: tuple[float, ...]
    rounding: float

    def is_like(self, other) -> bool:
        """Whether the other may be that of the same tensor."""
        if not isinstance(other, _Mark) or self.form != other.form:
            return False
        return all(
            a == b or isnan(a) and isnan(b) or abs(a - b) <= self.rounding
            for a, b in zip(self.numbers, other.numbers)
        )


def _mark(value):
    """A value as others can compare it with their own."""
    if not isinstance(value, Tensor):
        return value
    form, x = (tuple(value.shape), str(value.dtype)), value.detach().flatten()
    try:
        numbers = torch.stack([x.sum(), x[::2].sum(), x.norm()]).tolist()
    except RuntimeError:  # under vmap nothing can be looked at
        return form
    eps = torch.finfo(value.dtype).eps
    return _Mark(form, tuple(numbers), eps**0.5 * numbers[-1])


def _alike(a, b) -> bool:
    """Whether two ranks have the same, tensors up to rounding."""
    return a.is_like(b) if isinstance(a, _Mark) else a == b


def _told(error: Exception) -> tuple[type, str]:
    """The class and the words of an error; of classes that others may not know, the base."""
    kind = next((k for k in _REFUSALS if isinstance(error, k)), RuntimeError)
    refuses = kind is not RuntimeError
    return kind, str(error) if refuses else f"{type(error).__name__}: {error}"


def _raise_failures(heard: list[_Message], own: Exception | None) -> None:
    """One error on all ranks, where some have failed; a rank's own where all have the same."""
    failures = {r: m.failure for r, m in enumerate(heard) if m.failure is not None}
    if not failures:
        return
    if (
        own is not None
        and len(failures) == len(heard)
        and len(set(failures.values())) == 1
    ):
        raise own
    rank, (kind, words) = next(iter(failures.items()))
    raise kind(f"rank {rank} of {len(heard)}, at {heard[rank].call}: {words}") from own


def _require_same(heard: list[_Message]) -> None:
    first = heard[0]
    for rank, other in enumerate(heard):
        if other.call != first.call:
            raise RuntimeError(
                f"Objective: rank 0 computes {first.call}, rank {rank} {other.call}: all ranks "
                "must make the same calls in the same order"
            )
        for name, mark in first.same.items():
            if not _alike(mark, other.same[name]):
                raise RuntimeError(
                    f"Objective: ranks 0 and {rank} differ in {name.replace('_', ' ')}, at "
                    f"{first.call}: {_REMEDIES.get(name, 'all ranks must make the same calls')}"
                )


_REMEDIES = {
    "point": "load the same parameters on all of them, or draw them with one seed",
    "vectors": "pass generators with the same seed, and run on like machines",
    "modes": "call model.train() or model.eval() on all of them",
    "layout": "build the same model on all of them",
    "model": "build the same model on all of them",
    "loss": "pass the same loss on all of them",
    "frozen_tensors": "load the same frozen parameters and buffers on all of them",
}
