"""Whether everything in an architecture has an effect, as far as derivatives tell."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor

from quotientnet.options import require_count
from quotientnet.testing.drawn.program import Architecture, Step, require_architecture
from quotientnet.testing.drawn.registry import OPERATIONS

__all__ = ["steady", "without_effect"]

_NEGLIGIBLE = 1e-9
"""Derivatives below this, relative to the largest of their tensor, are rounding."""


def without_effect(network: Architecture, samples: int = 24) -> list[Step]:
    """The steps that read something, or compute something, that changes no output.

    An entry that one of its readers ignores (a branch never taken, a sum in which it cancels), or
    the mean or size of a normalisation that a later one removes once more: the derivation does not
    see that values cancel, and takes what has no effect to limit a scale like everything else.

    Args:
        network: The architecture.
        samples: The number of inputs on which an effect is looked for.

    Raises:
        TypeError: ``network`` is no architecture, ``samples`` no integer.
        ValueError: ``samples`` is below 1.
    """
    require_architecture(network, "without_effect")
    require_count(samples, "without_effect", "samples")
    uses: list[tuple[Step, Tensor]] = []

    def seen(step: Step, x: Tensor) -> Tensor:
        if x.is_floating_point():
            x = x.clone()
            x.retain_grad()
            uses.append((step, x))
        return x

    network = deepcopy(network)
    for layer in network.modules():
        if network.training and hasattr(layer, "running_mean"):
            layer.running_mean = layer.running_var = (
                None  # writes to them stop autograd
            )
    inputs = [x.requires_grad_(x.is_floating_point()) for x in network.inputs(samples)]
    results = network.results(inputs, seen)
    noise = torch.Generator().manual_seed(0)
    total = sum(
        (
            y
            * torch.randn(y.shape, generator=noise, dtype=y.dtype)
            / y.detach().abs().amax()
        ).sum()
        for y in (results[n] for n in network.outputs)
    )
    for y in results:
        if y.requires_grad:
            y.retain_grad()
    total.backward(retain_graph=True)
    idle = [step for step, x in uses if _some_idle(x.grad, x) and not _by_nature(step)]
    return (
        idle + list(_forgotten(network, results)) + list(_cancelled(network, results))
    )


@torch.no_grad()
def steady(network: Architecture, points: int = 6) -> bool:
    """Whether rounding does not decide: tiny changes of random parameters change outputs little."""
    network, inputs = deepcopy(network), network.inputs(12)
    noise = torch.Generator().manual_seed(0)

    def drawn(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=noise, dtype=p.dtype)

    for _ in range(points):
        for p in network.parameters():
            p.copy_(drawn(p) / max(p[0].numel() if p.ndim > 1 else 1, 1) ** 0.5)
        here = deepcopy(network)(*inputs)
        for p in network.parameters():
            p.mul_(1 + 1e-12 * drawn(p))
        there = deepcopy(network)(*inputs)
        for a, b in zip(here, there):
            if not ((a - b).abs().amax(0) <= 1e-6 * a.abs().amax(0)).all():
                return False
    return True


def _by_nature(step: Step) -> bool:
    """Whether what a step reads may have no derivative: a condition, the first token's scores."""
    return step.operation == "where_input" or step.options.get("causal", False)


def _some_idle(slope: Tensor | None, x: Tensor) -> bool:
    """Whether an entry has no effect in any sample."""
    if slope is None:
        return True
    along = (slope * x.detach()).abs().amax(0)
    return bool((along <= _NEGLIGIBLE * along.amax()).any())


def _cancelled(network: Architecture, results: list[Tensor]) -> Iterator[Step]:
    """Steps in whose result an earlier one cancels, as ``a`` does in ``a - (a + b)``."""
    above: dict[int, set[int]] = {}
    for step, numbers in zip(network.steps, network.numbers):
        read = set() if _by_nature(step) else set(step.operands)
        known = read.union(*(above[n] for n in read))
        above |= dict.fromkeys(numbers, known)
        earlier = [n for n in sorted(known) if results[n].requires_grad]
        if len(step.operands) < 2 or not earlier:
            continue
        size = results[numbers[0]].square().sum()
        slopes = torch.autograd.grad(
            size, [results[n] for n in earlier], retain_graph=True, allow_unused=True
        )
        along = [
            0.0 if g is None else (g * results[n]).abs().amax()
            for n, g in zip(earlier, slopes)
        ]
        if min(along) <= _NEGLIGIBLE * size.detach():
            yield step


def _forgotten(network: Architecture, results: list[Tensor]) -> Iterator[Step]:
    """Normalisations whose size or mean has no effect, constants that have none."""
    for step, (number, *_) in zip(network.steps, network.numbers):
        shifts = _SHIFTS.get(step.operation)
        if shifts is not None:  # as of keys, which softmax removes
            slopes = results[number].grad
            total = slopes.sum(shifts(step, slopes)).abs().amax()
            if total <= _NEGLIGIBLE * slopes.abs().amax():
                yield step
        if step.operation not in OPERATIONS["normalisation"]:
            continue
        y, layer = results[number], getattr(network, f"{step.operation}{number}", None)
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        axis = -1 if step.operation in _ALONG_LAST else 1
        shape = [n if a == axis % y.ndim else 1 for a, n in enumerate(y.shape)]
        centred = y if bias is None else y - bias.view(shape)
        probes = [centred.detach()]
        if step.operation in _CENTRED:
            probes.append(
                torch.ones_like(y)
                if weight is None
                else weight.detach().view(shape).expand(y.shape)
            )
        for probe in probes:
            parts = y.grad * probe
            along = _summed(parts, step.operation)
            if (along.abs() <= _NEGLIGIBLE * parts.abs().amax()).any():
                yield step
                break


_SHIFTS = {
    "plus_one": lambda step, x: tuple(range(1, x.ndim)),
    "log_softmax": lambda step, x: step.options["dim"],
}
"""The axes along which a step adds the same, whatever it may be."""

_CENTRED = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "standardised")

_ALONG_LAST = (
    "layer_norm", "rms_norm", "by_norm", "by_mean_square", "standardised", "normalize", "by_sum",
    "by_largest",
)  # fmt: skip


def _summed(x: Tensor, operation: str) -> Tensor:
    """The sums over what is normalised together, the largest of any sample."""
    if operation == "batch_norm":
        return x.transpose(0, 1).flatten(1).sum(1)
    if operation == "group_norm":
        return x.reshape(len(x), 2, -1).sum(2).abs().amax(0)
    if operation == "instance_norm":
        return x.flatten(2).sum(2).abs().amax(0)
    return x.sum(-1).abs().amax(0)
