"""What is looked at before the data of several processes are added up."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from quotientnet.layout import ParameterLayout, tensors_of

__all__ = ["check_shard", "others_of", "require_good_shards"]


def check_shard(data, processes) -> None:
    """Refuse data without batches, unless other ranks may have some, and shards that overlap; warn
    of a shard that is taken for all data.

    Raises:
        ValueError: No batches, or a sampler that repeats samples.
    """
    if not processes.several and hasattr(data, "__len__") and len(data) == 0:
        raise ValueError(
            "Objective: data has no batches; the loss of nothing is undefined"
        )
    sampler = getattr(data, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.num_replicas == 1:
        return
    count, ranks = len(sampler.dataset), sampler.num_replicas
    if not processes.several:
        warnings.warn(
            f"Objective: data are one of {ranks} shards of a DistributedSampler, and the objective "
            "is that of this shard; pass process_group='world' for that of all data",
            stacklevel=6,
        )
    elif not sampler.drop_last and count % ranks:
        raise ValueError(
            f"Objective: DistributedSampler repeats {ranks - count % ranks} of {count} samples, so "
            "that all ranks have as many, and they would count twice; use "
            "torch.utils.data.Subset(dataset, range(rank, len(dataset), ranks)), or drop_last=True"
        )


def others_of(model: nn.Module, layout: ParameterLayout) -> Tensor:
    """Numbers of a model's tensors that are no coordinates: frozen parameters, buffers."""
    others = [
        t
        for name, t in tensors_of(model).items()
        if name not in layout and t.is_floating_point() and not t.is_meta
    ]
    return torch.tensor(_numbers_of(others), dtype=torch.float64)


def require_good_shards(
    processes, value: Tensor, inputs: list[Tensor], local: Callable
) -> None:
    """Say which ranks' batches have a loss that is not finite, or that all ranks have the same.

    Args:
        processes: All ranks, of which this is a call.
        value: The loss, the same on all.
        inputs: Of this rank's batches, in order.
        local: Returns this rank's part of the loss before all else.

    Raises:
        ValueError: The loss is not finite.
    """
    if torch.isfinite(value):
        numbers = processes.gather("the batches", lambda: _numbers_of(inputs[:1]))
        if (
            len(numbers) > 1
            and numbers[0]
            and numbers.count(numbers[0]) == len(numbers)
        ):
            warnings.warn(
                "Objective: all ranks have the same first batch, so that its samples count "
                f"{len(numbers)} times; give each rank its own part of the data",
                stacklevel=4,
            )
        return
    finite = processes.gather("the batches", lambda: bool(torch.isfinite(local()[0])))
    ranks = ", ".join(str(rank) for rank, fine in enumerate(finite) if not fine)
    where = f"on the batches of rank {ranks}, and so " if ranks else ""
    raise ValueError(
        f"Objective.at: the loss is {value.item()} at this point {where}in all; check the data, "
        "the targets and the scale of w"
    )


def _numbers_of(tensors: list[Tensor]) -> list[float]:
    """Two numbers of each tensor, which tell it from others."""
    return [
        float(number)
        for t in tensors
        for number in (t.detach().double().sum(), t.detach().double().norm())
    ]
