"""Sums of squared derivatives in a layer's parameters, sample by sample, never materialised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from quotientnet.curvature.samples import SampleAxis
from quotientnet.curvature.scales import widened
from quotientnet.curvature.uses import Call

__all__ = ["Rule", "rule_for"]

_BLOCK = 1 << 22  # entries of a temporary


class Rule(ABC):
    """The derivatives in the parameters of one call for ``n`` samples, each with its own seeds.

    Args:
        call: The call.
        x_axis: Where the samples are in its input.
        out_axis: Where they are in its output.
        n: Their number.
        wide: Whether inputs are read in float64, for points whose squares leave the dtype's range;
            derivatives have to come in the same.
    """

    def __init__(
        self, call: Call, x_axis: SampleAxis | None, out_axis: SampleAxis, n: int, wide=False
    ):
        self.call, self.n = call, n
        self.read = widened if wide else lambda tensor: tensor
        self.x_axis, self.out_axis = x_axis, out_axis

    @staticmethod
    @abstractmethod
    def fits(
        call: Call, x_axis: SampleAxis | None, out_axis: SampleAxis | None, ndim: int
    ) -> bool:
        """Whether samples lie where the rule needs them; ``ndim`` is that of the output."""

    @abstractmethod
    def traces(self, delta: Tensor, roles) -> dict[str, Tensor]:
        """``Σ_z Σ_k ‖∂⟨seed_k, outputs_z⟩/∂parameter‖²`` for each role.

        Args:
            delta: Derivatives in the call's output, shape ``(columns, *output)``.
            roles: ``weight``, ``bias`` or both.
        """

    @abstractmethod
    def diagonals(self, delta: Tensor, roles) -> dict[str, Tensor]:
        """The same sums entry by entry, in the shape of the parameter."""


class _Product(Rule):
    """``Σ_t δ_t x_tᵀ``: linear maps, convolutions and their transposes, by groups.

    A subclass gives ``x`` as ``(n, groups, T, I)``, and δ as ``(n, groups, columns · O, T)``.
    """

    @cached_property
    def x(self) -> Tensor:
        """The input as ``(n, groups, T, I)``."""
        return self.read(self._input())

    @cached_property
    def _x_gram(self) -> Tensor:
        return self.x @ self.x.mT

    @cached_property
    def _x_squares(self) -> Tensor:
        return self.x.square().sum((2, 3))

    @abstractmethod
    def _input(self) -> Tensor:
        """See :attr:`x`."""

    @abstractmethod
    def _delta(self, delta: Tensor) -> Tensor:
        """δ as ``(n, groups, columns · O, T)``."""

    @abstractmethod
    def _bias(self, delta: Tensor) -> Tensor:
        """δ summed over positions, ``(..., O)``."""

    @abstractmethod
    def _shaped(self, squares: Tensor) -> Tensor:
        """From ``(groups, O, I)`` to the shape of the weight."""

    def traces(self, delta, roles):
        found = {}
        if "bias" in roles:
            found["bias"] = _squared_norm(self._bias(delta))
        if "weight" in roles:
            found["weight"] = self._weight_trace(self._delta(delta))
        return found

    def _weight_trace(self, d: Tensor) -> Tensor:
        columns, positions = d.shape[2:]
        entries = self.x.shape[3]
        if positions == 1:
            return torch.sum(self._x_squares * d.square().sum((2, 3)))
        if positions * (columns + entries) < columns * entries:
            return torch.sum(self._x_gram * (d.mT @ d))
        return sum(_squared_norm(block) for block in self._blocks(d))

    def _blocks(self, d: Tensor):
        """Per-sample derivatives ``(samples, groups, columns · O, I)``, some samples at a time."""
        each = prod(d.shape[1:3]) * self.x.shape[3]
        step = max(1, _BLOCK // each)
        for start in range(0, self.n, step):
            yield d[start : start + step] @ self.x[start : start + step]

    def diagonals(self, delta, roles):
        found = {}
        if "bias" in roles:
            sums = self._bias(delta)
            found["bias"] = sums.square().sum(tuple(range(sums.ndim - 1)))
        if "weight" in roles:
            d, columns = self._delta(delta), len(delta)
            if d.shape[3] == 1:  # one position: no derivative of a sample is formed
                squares = d.unflatten(2, (columns, -1)).square().sum(2)[..., 0]
                total = torch.einsum("ngo,ngi->goi", squares, self.x.square()[:, :, 0])
            else:
                total = sum(
                    b.unflatten(2, (columns, -1)).square().sum((0, 2))
                    for b in self._blocks(d)
                )
            found["weight"] = self._shaped(total)
        return found


class _Linear(_Product):
    @staticmethod
    def fits(call, x_axis, out_axis, ndim):
        if x_axis is None or out_axis is None:
            return False
        return x_axis == out_axis and x_axis.axis < call.x.ndim - 1

    def _input(self):
        return self.x_axis.front(self.call.x, self.n).flatten(1, -2)[:, None]

    def _front(self, delta):
        """``(columns, n, T, O)``."""
        return self.out_axis.front(delta, self.n, lead=1).flatten(2, -2)

    def _delta(self, delta):
        return self._front(delta).permute(1, 0, 3, 2).flatten(1, 2)[:, None]

    def _bias(self, delta):
        return self._front(delta).sum(2)

    def _shaped(self, squares):
        return squares[0].T if self.call.options.get("transposed") else squares[0]

    def traces(self, delta, roles):
        front = self._front(delta)
        if front.shape[2] > 1:
            return super().traces(delta, roles)
        norms = torch.linalg.vector_norm(front, dim=(2, 3)).square().sum(0)
        found = {"weight": torch.dot(self._x_squares[:, 0], norms), "bias": norms.sum()}
        return {role: found[role] for role in roles}


class _Convolution(_Product):
    @staticmethod
    def fits(call, x_axis, out_axis, ndim):
        spatial = call.weight.ndim - 2
        batched = call.x.ndim == spatial + 2
        axes = (x_axis, out_axis)
        return batched and all(a is not None and a.axis == 0 for a in axes)

    @property
    def _groups(self) -> int:
        return self.call.options["groups"]

    def _grouped(self, tensor: Tensor, axis: SampleAxis, lead: int = 0) -> Tensor:
        """``(*lead, n, entries, C, L)`` to ``(*lead, n, groups, C/groups, entries · L)``."""
        front = axis.front(tensor, self.n, lead).flatten(lead + 3)
        channels = front.transpose(lead + 1, lead + 2).flatten(lead + 2)
        return channels.unflatten(lead + 1, (self._groups, -1))

    def _patches(self, images: Tensor) -> Tensor:
        """``(N, C, *sizes)`` to ``(N, C · kernel, L)``."""
        o = self.call.options
        return patches(
            images, self.call.weight.shape[2:], o["stride"], o["padding"], o["dilation"]
        )

    def _input(self):
        return self._grouped(self._patches(self.call.x), self.x_axis).mT

    def _delta(self, delta):
        return (
            self._grouped(delta, self.out_axis, 1).permute(1, 2, 0, 3, 4).flatten(2, 3)
        )

    def _bias(self, delta):
        return self._grouped(delta, self.out_axis, 1).sum(-1).flatten(2)

    def _shaped(self, squares):
        return squares.reshape(self.call.weight.shape)


class _Transposed(_Convolution):
    """The adjoint of a convolution: input and output change places."""

    @staticmethod
    def fits(call, x_axis, out_axis, ndim):
        sizes = [call.options[key] for key in ("output_padding", "stride")]
        extra, stride = (_tuple(size, call.weight.ndim - 2) for size in sizes)
        covers = all(e < s for e, s in zip(extra, stride))
        return covers and _Convolution.fits(call, x_axis, out_axis, ndim)

    def _input(self):
        return self._grouped(self.call.x.flatten(2), self.x_axis).mT

    def _delta(self, delta):
        windows = self._patches(delta.flatten(0, 1))
        windows = windows.unflatten(0, delta.shape[:2])
        return super()._delta(windows)

    def _shaped(self, squares):
        return squares.mT.reshape(self.call.weight.shape)


class _Scaling(Rule):
    """``factor(x) · weight + bias`` with broadcasting: norms, products and sums."""

    @staticmethod
    def fits(call, x_axis, out_axis, ndim):
        scales = call.options["factor"] is not None
        if out_axis is None or (scales and x_axis is None):
            return False
        parameters = [p for p in (call.weight, call.bias) if p is not None]
        return all(_aligned(p, call, ndim)[out_axis.axis] == 1 for p in parameters)

    @cached_property
    def _factor(self) -> Tensor:
        return self.read(self.call.options["factor"](self.call.x))

    def _sums(self, delta: Tensor, role: str) -> Tensor:
        """Each sample's derivatives, ``(columns, n, *rest)``, summed over what is broadcast."""
        parameter = getattr(self.call, role)
        product = delta * self._factor if role == "weight" else delta
        shape, own = _aligned(parameter, self.call, delta.ndim - 1), self.out_axis.axis
        split = self.out_axis.front(product, self.n, lead=1)
        others = [size for i, size in enumerate(shape) if i != own]
        over = [2] + [3 + i for i, size in enumerate(others) if size == 1]
        return split.sum(over)

    def traces(self, delta, roles):
        return {role: _squared_norm(self._sums(delta, role)) for role in roles}

    def diagonals(self, delta, roles):
        return {
            role: self._sums(delta, role)
            .square()
            .sum((0, 1))
            .reshape(getattr(self.call, role).shape)
            for role in roles
        }


def _aligned(parameter: Tensor, call: Call, ndim: int) -> tuple[int, ...]:
    """The shape with which a parameter is broadcast to an output of ``ndim`` axes."""
    shape = tuple(parameter.shape)
    if call.options["channel"]:
        shape = (*shape, *(1,) * (ndim - 2))
    return (1,) * (ndim - len(shape)) + shape


class _Embedding(Rule):
    """Rows of a table: those of equal tokens of a sample add up."""

    @staticmethod
    def fits(call, x_axis, out_axis, ndim):
        return x_axis is not None and x_axis == out_axis

    def _rows(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample's derivative in each row that it uses, ``(columns, rows, C)``, and the
        rows' tokens."""
        tokens = self.x_axis.front(self.call.x, self.n).reshape(self.n, -1)
        delta = self.out_axis.front(delta, self.n, 1).flatten(2, -2).flatten(1, 2)
        size = self.call.weight.shape[0]
        owner = torch.arange(self.n, device=tokens.device)[:, None] * size
        slots, place = (tokens + owner).flatten().unique(return_inverse=True)
        rows = delta.new_zeros(len(delta), len(slots), delta.shape[-1])
        rows.index_add_(1, place, delta)
        padding = self.call.options["padding"]
        if padding is not None:
            rows = rows * (slots % size != padding)[:, None]
        return rows, slots % size

    def traces(self, delta, roles):
        return {"weight": _squared_norm(self._rows(delta)[0])}

    def diagonals(self, delta, roles):
        rows, tokens = self._rows(delta)
        total = rows.new_zeros(self.call.weight.shape)
        return {"weight": total.index_add_(0, tokens, rows.square().sum(0))}


_RULES = {
    "linear": _Linear, "convolution": _Convolution,
    "transposed convolution": _Transposed, "scaling": _Scaling, "embedding": _Embedding,
}  # fmt: skip


def rule_for(call: Call) -> type[Rule]:
    """The rule of a call's kind."""
    return _RULES[call.kind]


def _squared_norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor).square()


def patches(images: Tensor, kernel, stride, padding, dilation) -> Tensor:
    """The windows of a convolution in any number of dimensions.

    Args:
        images: Shape ``(N, C, *sizes)``.
        kernel: Lengths of the window.
        stride: An integer, or one a dimension; so for padding and dilation.
        padding: Also ``"same"`` or ``"valid"``.
        dilation: Distances inside the window.

    Returns:
        Shape ``(N, C · window, positions)``.
    """
    count = len(kernel)
    stride, dilation = _tuple(stride, count), _tuple(dilation, count)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if padding == "same":
        sides = [(s // 2, s - s // 2) for s in spans]
    else:
        sides = [(p, p) for p in _tuple(0 if padding == "valid" else padding, count)]
    if any(a or b for a, b in sides):
        images = F.pad(images, [p for side in reversed(sides) for p in side])
    sizes = images.shape[2:]
    positions = [(a - s - 1) // t + 1 for a, s, t in zip(sizes, spans, stride)]
    strides = images.stride()
    windows = images.as_strided(
        (*images.shape[:2], *kernel, *positions),
        (
            *strides[:2],
            *(s * d for s, d in zip(strides[2:], dilation)),
            *(s * t for s, t in zip(strides[2:], stride)),
        ),
        images.storage_offset(),
    )
    return windows.reshape(len(images), images.shape[1] * prod(kernel), prod(positions))


def _tuple(value, count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    value = tuple(value)
    return value * count if len(value) == 1 else value
