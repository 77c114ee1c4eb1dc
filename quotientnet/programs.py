"""Which way to compute products with second derivatives, and the programs recorded for it."""

from __future__ import annotations

import os
from collections import Counter

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from quotientnet.kinds import BatchMap, Kind, twice_differentiable
from quotientnet.linearise import Linearised, NotTraceable, linearise

__all__ = ["Programs"]

_WAYS = ("auto", "graph", "record", "recompute")
_BYTES_AN_OPERATION = 1e7
"""Recording an operation takes about the time of writing this much memory."""
_LEAST = 8
"""Products that recording costs at least: it runs everything, more slowly."""


class Programs:
    """How one objective computes products, and what has been recorded for it.

    Args:
        way: One of ``"auto"``, ``"graph"``, ``"record"``, ``"recompute"``.
        memory: Bytes that may be kept between products; None for a quarter of the device's.
    """

    def __init__(self, way: str, memory: int | None):
        if way not in _WAYS:
            raise ValueError(
                f"Objective: products must be one of {', '.join(map(repr, _WAYS))}, got {way!r}"
            )
        if memory is not None and memory < 0:
            raise ValueError(f"Objective: memory must not be negative, got {memory}")
        self._way, self._memory = way, memory
        self._recorded: dict[tuple, Linearised | NotTraceable] = {}
        self._meters: dict[Kind, _Meter] = {}
        self._products: Counter[Kind] = Counter()

    def __getstate__(self):
        return {**self.__dict__, "_recorded": {}}

    def anew(self) -> Programs:
        """The same choices, with nothing recorded."""
        return Programs(self._way, self._memory)

    def local(self, kind: Kind, objective, w: Tensor, batch, v, kept) -> BatchMap:
        """A batch's linear map: ``kept`` if there is nothing better, or a new one.

        Args:
            kind: The second derivative.
            objective: The function.
            w: The point.
            batch: Positional and keyword arguments and targets.
            v: The vectors to come, shape ``(parameters, m)``.
            kept: The map of the same batch and point that is at hand, or None.
        """
        self._products[kind] += v.shape[1]
        if kept is not None and (kept.recorded or not self._pays(kind)):
            return kept
        if self._pays(kind):
            recorded = self._by_program(kind, objective, w, batch, v[:, 0], kept)
            if recorded is not None:
                return recorded
        return kept or self._by_graph(kind, objective, w, batch)

    def may_keep(self, local: BatchMap) -> bool:
        """Whether a map may stay in memory between products."""
        return self._way != "recompute" and local.size <= self._budget(local.device)

    def _pays(self, kind: Kind) -> bool:
        """Whether recording has paid off after the products so far."""
        if self._way != "auto":
            return self._way == "record"
        meter = self._meters.get(kind)
        return meter is not None and (
            self._products[kind] > _LEAST
            and self._products[kind] * meter.bytes
            >= meter.operations * _BYTES_AN_OPERATION
        )

    def _budget(self, device: torch.device) -> float:
        if self._memory is not None:
            return self._memory
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory / 4
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4

    def _by_graph(self, kind: Kind, objective, w: Tensor, batch) -> BatchMap:
        if kind in self._meters:
            return kind.by_graph(objective, w, batch, self._meters[kind].bytes)
        with _Meter() as meter:
            local = kind.by_graph(objective, w, batch, 0)
        self._meters[kind] = meter
        return local.sized(meter.bytes)

    def _by_program(self, kind, objective, w, batch, v, kept) -> BatchMap | None:
        """The recorded map; None if there is none, or it is no longer that of the objective.

        A program holds what Python knew when it was recorded: it is compared with double backward
        when it is new, and by its value with the loss at every point and batch.
        """
        tensors, key = _form(kind, objective, w, batch)
        count = objective.layout.parameter_size
        inputs = (w[:count], w[count:], *tensors)
        new = key not in self._recorded
        if new:
            self._recorded[key] = _recorded(kind, objective, batch, v, inputs)
        program = self._recorded[key]
        local = None
        if isinstance(program, Linearised):
            (value, *weight), state = program.prepare(*inputs)
            local = BatchMap(
                lambda u: program.apply(state, u),
                weight[0] if weight else None,
                w.device,
                program.bytes_kept,
                recorded=True,
            )
            reason = _stale(objective, w, batch, value, weight)
            if reason is None and new:
                reference = kept or self._by_graph(kind, objective, w, batch)
                reason = _differs(local.apply(v), reference.apply(v))
            if reason is None and self._way == "auto" and not self.may_keep(local):
                reason = f"it keeps {program.bytes_kept} bytes, more than memory allows"
            if reason is not None:
                program = self._recorded[key] = NotTraceable(reason)
        if isinstance(program, Linearised):
            return local
        if self._way == "record":
            raise ValueError(
                f"Objective: products='record' cannot record this model ({program}); use "
                "products='graph'"
            )
        return None


class _Meter(TorchDispatchMode):
    """Counts the operations that run within, and the bytes of their results."""

    def __init__(self):
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not any(r.alias_info for r in function._schema.returns):
            tensors = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
            self.operations += 1
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result


def _form(kind: Kind, objective, w: Tensor, batch) -> tuple[list[Tensor], tuple]:
    """A batch's tensors, and all that a recorded program depends on beside their values."""
    leaves, spec = pytree.tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = tuple(
        (type(leaf), repr(leaf)) for leaf in leaves if not isinstance(leaf, Tensor)
    )
    forms = tuple((t.shape, t.stride(), t.dtype, t.device) for t in (w, *tensors))
    return tensors, (kind, spec, others, forms, objective._modes())


def _recorded(kind: Kind, objective, batch, v, inputs) -> Linearised | NotTraceable:
    leaves, spec = pytree.tree_flatten(batch)

    def function(v, leaf, passive, *tensors):
        rest = iter(tensors)
        values = [next(rest) if isinstance(x, Tensor) else x for x in leaves]
        given = pytree.tree_unflatten(values, spec)
        return kind.by_program(objective, given, v, leaf, passive)

    try:
        with twice_differentiable():
            return linearise(function, v, inputs)
    except NotTraceable as reason:
        return reason


def _stale(objective, w: Tensor, batch, value: Tensor, weight: list) -> str | None:
    """Why a program's value is not that of the loss, or None.

    Both evaluate the same operations, but for the order of sums: a thousand roundings of the loss,
    or of a loss of a thousandth where it is nearly 0, are allowed for.
    """
    with torch.no_grad():
        now, scale, _ = objective._within(w, lambda: objective._evaluate(batch))
    size = abs(float(now)) + 1e-3 * abs(float(1.0 if scale is None else scale))
    gap, eps = abs(float(value - now)), torch.finfo(w.dtype).eps
    same = (scale is None) == (not weight)
    if same and (gap <= 1e3 * eps * size or not torch.isfinite(now)):
        return None
    return (
        f"its value differs by {gap:.1e} from the loss: something beside the parameters, buffers "
        "and tensors of the batch has changed, or Python numbers were computed from them"
    )


def _differs(found: Tensor, expected: Tensor) -> str | None:
    """Why a product is not that of double backward, or None: half the digits must agree, which
    rounding leaves and a wrong derivative does not."""
    tolerance = torch.finfo(found.dtype).eps ** 0.5
    gap, size = float((found - expected).norm()), float(expected.norm())
    if gap <= tolerance * size:
        return None
    return f"its product differs by {gap:.1e} from double backward"
