"""The derivative of a module's outputs and running statistics by the scales of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from quotientnet.symmetry.exactly import EXACT, Exact, refuse_constant
from quotientnet.symmetry.replica import Replica, first_line

__all__ = ["slope"]


def slope(
    replica: Replica,
    w: Tensor,
    args: tuple,
    kwargs: Mapping,
    weigh: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""How a weighted sum of the results changes with the exponents of a scaling.

    Scale each coordinate by ``e^{a_i t}`` and divide the updated running statistics by their own
    scales: the derivative by ``t`` at 0 is ``⟨slope, a⟩``. It is that of the function, through
    ``detach`` and ``no_grad`` as well.

    Args:
        replica: The model.
        w: A point, shape ``(n,)``.
        args: Positional arguments of the model.
        kwargs: Keyword arguments.
        weigh: The weights of a result, of its shape.

    Returns:
        Shape ``(n,)``.

    Raises:
        Degenerate: A channel is constant where it is to be normalised.
    """
    replica.move(w)
    tensors = dict(replica.model.named_parameters()) | dict(
        replica.model.named_buffers()
    )
    entries = [entry for entry in replica.layout.entries if entry.name in tensors]
    leaves = [tensors[entry.name] for entry in entries]
    try:
        with torch.enable_grad():
            for leaf in leaves:
                leaf.requires_grad_()
            mode = _Differentiable()
            outputs = replica.forward(args, kwargs, mode)
            # A masked entry, at minus infinity, is the same at all equivalent points.
            outputs = [torch.where(torch.isfinite(y), y, 0.0) for y in outputs]
            total = sum((y * weigh(y)).sum() for y in outputs)
            own = {}
            for number, leaf in enumerate(leaves):
                updated = mode.statistics.get(id(leaf))
                if updated is not None:
                    weighted = updated * weigh(updated)
                    total, own[number] = total + weighted.sum(), weighted.detach()
            slopes = _gradients(total, leaves)
    finally:
        for leaf in leaves:
            leaf.requires_grad_(False)
    result = torch.zeros_like(w)
    for number, (entry, leaf, by_leaf) in enumerate(zip(entries, leaves, slopes)):
        result[entry.slice] = (
            (by_leaf * leaf - own.get(number, 0.0)).detach().reshape(-1)
        )
    return result


def _gradients(total: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    try:
        return torch.autograd.grad(
            total, leaves, allow_unused=True, materialize_grads=True
        )
    except RuntimeError as error:
        raise ValueError(
            f"verify_complete: autograd has no derivative of this model: {first_line(error)}"
        ) from error


class _Differentiable(Exact):
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
            with torch.no_grad():
                return function(*args, **kwargs)
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
