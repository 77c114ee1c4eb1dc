"""A thousand calls leave a process as it was: no object, tensor or memory that stays.

All 1,000 of each with ``LEAKS=all`` in the environment. Without, as many as a fraction of a second
allows: 1,000 of a group's actions, 200 of the node-wise geometry, of the others 3 to 50. That shows
what stays at every call, and not what stays at every hundredth.
``tests/benchmarks/soak.py`` makes them all for an hour.
"""

import os
import sys
from functools import cache

import calls
import pytest
import torch

import quotientnet as qn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ALL = os.environ.get("LEAKS") == "all"
COUNTS = {
    "group": 1000, "NodeWiseQuotient": 200, "LayerScaleQuotient": 50, "report": 3,
    "verify_sound": 5, "discover": 5,
}  # fmt: skip
"""So many calls by what a name begins with; of others 20."""
EXPORT = "discover", "verify_sound"
"""PyTorch keeps the source of every graph that it exports, with a few objects each time."""
NOISE, MEBIBYTES = 20, 4.0
"""Objects that come and go by themselves; memory, likewise."""

made = cache(calls.calls)


def names():
    """Of all calls, of which manifolds have some more."""
    manifolds = (qn.NodeWiseQuotient, qn.LayerScaleQuotient, qn.BalancedQuotient)
    return [*calls.ONES, *(f"{m.__name__}: {o}" for m in manifolds for o in calls.operations(m))]


@pytest.mark.parametrize("name", names())
def test_calls_keep_nothing(name):
    count = 1000 if ALL else COUNTS.get(name.split(":")[0], 20)
    grown = calls.growth(made()[name], count)
    assert grown.tensors <= 0.1 * count, grown
    assert grown.mebibytes < MEBIBYTES, grown
    if name not in EXPORT:
        assert grown.objects <= max(NOISE, 0.1 * count), grown
    else:
        inner = torch.nn.Linear(8, 3), (torch.zeros(2, 8),)
        alone = calls.growth(lambda: torch.export.export(*inner, strict=False), count)
        assert grown.objects <= alone.objects + max(NOISE, 0.1 * count), (grown, alone)


def test_what_is_kept_is_seen():
    call, kept = made()["group: act"], []
    assert calls.growth(call, 100).tensors == 0
    grown = calls.growth(lambda: kept.append(call()), 100)
    assert grown.tensors == 100 and grown.objects >= 100


def test_memory_that_python_does_not_see_is_seen():
    kept = []
    grown = calls.growth(lambda: kept.append(torch.ones(2**14).numpy()), 1000)
    assert grown.mebibytes > 10 * MEBIBYTES


def test_errors_keep_nothing():
    group = qn.discover(torch.nn.Linear(8, 3), torch.zeros(2, 8)).group

    def refused():
        with pytest.raises(ValueError):
            group.act(torch.zeros(3), group.identity())

    grown = calls.growth(refused, 100)
    assert grown.tensors == 0 and grown.objects < NOISE
