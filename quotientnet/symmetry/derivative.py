"""The derivative of a module's outputs and running statistics by the scales of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

from quotientnet.symmetry.exactly import EXACT, Exact, refuse_constant
from quotientnet.symmetry.replica import Replica, first_line

__all__ = ["Slopes", "Differentiable"]


class Slopes:
    r"""How weighted sums of the results change with the exponents of a scaling.

    Scale each coordinate by ``e^{a_i t}`` and divide the updated running statistics by their own
    scales: the derivative of a weighted sum by ``t`` at 0 is ``⟨slope, a⟩``. It is that of the
    function, through ``detach`` and ``no_grad`` as well.

    Args:
        replica: The model; its ``caller`` is named in errors.
    """

    def __init__(self, replica: Replica):
        self.replica = replica
        self._batched: bool | None = None
        """Whether autograd can take many sums at once; not known before it has been tried."""
        self._copies = False
        """Whether what autograd needs is copied when the model writes over it."""

    def __call__(
        self,
        w: Tensor,
        args: tuple,
        kwargs: Mapping,
        weigh: Callable[[Tensor, int], Tensor],
        count: int = 1,
    ) -> Tensor:
        """The slopes of several sums at one point.

        Args:
            w: A point, shape ``(n,)``.
            args: Positional arguments of the model.
            kwargs: Keyword arguments.
            weigh: The weights of a result in each of a number of sums, one more axis in front.
            count: The number of sums, of which there are no more than results.

        Returns:
            Shape ``(count, n)``.

        Raises:
            Degenerate: A channel is constant where it is to be normalised.
        """
        try:
            return self._at(w, args, kwargs, weigh, count)
        except _WrittenOver:
            self._copies = True
            return self._at(w, args, kwargs, weigh, count)

    def _at(self, w: Tensor, args: tuple, kwargs: Mapping, weigh: Callable, count: int) -> Tensor:
        replica = self.replica
        replica.move(w)
        copying = allow_mutation_on_saved_tensors() if self._copies else nullcontext()
        tensors = dict(replica.model.named_parameters()) | dict(
            replica.model.named_buffers()
        )
        entries = [entry for entry in replica.layout.entries if entry.name in tensors]
        leaves = [tensors[entry.name] for entry in entries]
        try:
            with torch.enable_grad(), copying:
                for leaf in leaves:
                    leaf.requires_grad_()
                mode = Differentiable()
                outputs = replica.forward(args, kwargs, mode)
                # A masked entry, at minus infinity, is the same at all equivalent points.
                outputs = [torch.where(torch.isfinite(y), y, 0.0) for y in outputs]
                updated = [mode.statistics.get(id(leaf)) for leaf in leaves]
                results = outputs + [u for u in updated if u is not None]
                count = min(count, sum(y.numel() for y in results))
                weights = [weigh(y, count) for y in results]
                slopes = self._gradients(results, weights, leaves)
        finally:
            for buffer in replica.model.buffers():
                buffer.detach_()  # it may have been written into
            for leaf in leaves:
                leaf.requires_grad_(False)
        own, result = iter(weights[len(outputs) :]), w.new_zeros(count, *w.shape)
        for entry, leaf, by_leaf, value in zip(entries, leaves, slopes, updated):
            along = result[:, entry.slice].view(count, *entry.shape)
            # Some slopes come back tracked by autograd in torch 2.9.
            torch.mul(by_leaf.detach(), leaf, out=along)
            if value is not None:
                along -= next(own) * value.detach()
        return result

    def _gradients(self, results, weights, leaves) -> list[Tensor]:
        """By each leaf, one more axis in front."""
        if len(weights[0]) > 1 and self._batched is None:
            # Operations of a user's own may not know of it, and some of torch's are wrong.
            first = [weight[:1] for weight in weights]
            single = self._one_by_one(results, first, leaves, retain=True)
            several = _all_at_once(results, weights, leaves)
            self._batched = several is not None and all(
                torch.allclose(b[:1], a, rtol=1e-9, atol=1e-12)
                for a, b in zip(single, several)
            )
        if len(weights[0]) > 1 and self._batched:
            several = _all_at_once(results, weights, leaves)
            if several is not None:
                return several
        return self._one_by_one(results, weights, leaves)

    def _one_by_one(self, results, weights, leaves, retain=False) -> list[Tensor]:
        rows, count = [], len(weights[0])
        for number in range(count):
            total = sum(
                (y * weight[number]).sum() for y, weight in zip(results, weights)
            )
            rows.append(self._gradient(total, leaves, retain or number + 1 < count))
        return [torch.stack(columns) for columns in zip(*rows)]

    def _gradient(self, total: Tensor, leaves, retain: bool) -> tuple[Tensor, ...]:
        try:
            return torch.autograd.grad(
                total,
                leaves,
                retain_graph=retain,
                allow_unused=True,
                materialize_grads=True,
            )
        except RuntimeError as error:
            if "modified by an inplace operation" in str(error) and not self._copies:
                raise _WrittenOver from error
            raise ValueError(
                f"{self.replica.caller}: autograd has no derivative of this model: "
                f"{first_line(error)}"
            ) from error


class _WrittenOver(RuntimeError):
    """The model writes over something that its derivative needs."""


def _all_at_once(results, weights, leaves) -> list[Tensor] | None:
    """The gradients of every weighted sum in one pass, or nothing where that fails."""
    kept = [(y, weight) for y, weight in zip(results, weights) if y.requires_grad]
    if not kept:
        return None
    outputs, grads = zip(*kept)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            slopes = torch.autograd.grad(
                outputs, leaves, grads, retain_graph=True, allow_unused=True,
                is_grads_batched=True,
            )  # fmt: skip
    except Exception:  # whatever an operation of a user's own raises on batched tensors
        return None
    count = len(weights[0])
    return [
        leaf.new_zeros(count, *leaf.shape) if slope is None else slope
        for slope, leaf in zip(slopes, leaves)
    ]


class Differentiable(Exact):
    """Derivatives of what is computed, whatever the module hides from autograd.

    Normalisation by running statistics is plain arithmetic, and so are their updates, which are
    kept in ``statistics`` by the identity of the buffer. Constant channels are refused.
    """

    def __init__(self):
        super().__init__()
        self.statistics: dict[int, Tensor] = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch._C._set_grad_enabled:
            return None
        if (kwargs or {}).get("out") is not None:
            return self._into(function, types, args, kwargs)
        if function in (Tensor.numpy, Tensor.__array__):
            return function(args[0].detach(), *args[1:], **kwargs or {})
        if function in (Tensor.detach, torch.detach, Tensor.data.__get__):
            return args[0]
        if function in (F.embedding, torch.embedding):
            # The row of the padding has no gradient, but an effect.
            args = args[:2]
            kwargs = {k: v for k, v in (kwargs or {}).items() if "norm" in k}
        if function is F.batch_norm:
            return self._batch_norm(*args, **kwargs or {})
        if function is F.instance_norm:
            return self._instance_norm(*args, **kwargs or {})
        return super().__torch_function__(function, types, args, kwargs)

    def _into(self, function, types, args, kwargs):
        """A result that is written into a tensor, which autograd does not follow, by a copy."""
        out, options = kwargs["out"], {k: v for k, v in kwargs.items() if k != "out"}
        if not isinstance(out, Tensor):
            with torch.no_grad():
                return function(*args, **kwargs)
        result = self.__torch_function__(function, types, args, options)
        if out.shape != result.shape:  # as torch does, with a warning
            out.resize_(result.shape)
        return out.copy_(result)

    def _batch_norm(
        self, x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1,
        eps=1e-5,
    ):  # fmt: skip
        if not training:
            return _by_statistics(
                x, self._now(running_mean), self._now(running_var), weight, bias
            )
        axes = [a for a in range(x.ndim) if a != 1]
        refuse_constant(x, axes, zeros=True)
        self._update(running_mean, x.mean(axes), momentum)
        self._update(running_var, x.var(axes), momentum)
        return F.batch_norm(x, None, None, weight, bias, True, momentum, EXACT)

    def _instance_norm(
        self, x, running_mean=None, running_var=None, weight=None, bias=None,
        use_input_stats=True, momentum=0.1, eps=1e-5,
    ):  # fmt: skip
        if not use_input_stats:
            return self._batch_norm(x, running_mean, running_var, weight, bias)
        axes = list(range(2, x.ndim))
        refuse_constant(x, axes, zeros=True)
        self._update(running_mean, x.mean(axes).mean(0), momentum)
        self._update(running_var, x.var(axes).mean(0), momentum)
        return F.instance_norm(x, None, None, weight, bias, True, momentum, EXACT)

    def _now(self, buffer: Tensor) -> Tensor:
        return self.statistics.get(id(buffer), buffer)

    def _update(self, buffer: Tensor | None, value: Tensor, momentum: float) -> None:
        if buffer is not None:
            before = self._now(buffer)
            self.statistics[id(buffer)] = (1 - momentum) * before + momentum * value


def _by_statistics(x, mean, variance, weight, bias):
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = (x - mean.view(shape)) * variance.view(shape).rsqrt()
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)
