"""What two processes compute in ``test_processes.py``, and one process alone."""

import contextlib
import io
import os
import warnings
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import quotientnet as qn
from quotientnet import curvature
from quotientnet.__main__ import main
from quotientnet.commands import report

RANKS, ENDED = 2, 17
"""The number of processes, and the exit code of the one that ends by itself."""
WEIGHTS = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def drawn(*shape, seed=0):
    """Normal random numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def seeded(build, seed=0):
    """A network in float64 whose weights have this seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


def dense():
    """One with curvature everywhere."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def rectified():
    """One with a group of scalings."""
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def convolutional():
    """One with running statistics, which are passive coordinates."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3),
        nn.Softplus(), nn.Flatten(), nn.Linear(12, 3),
    )  # fmt: skip


class ByToken:
    """A loss with its own normaliser, and of no form that the library knows."""

    def __call__(self, outputs, targets):
        return (outputs.pow(4).sum(1) * (1 + targets)).sum() / (1 + targets).sum()

    def normaliser(self, outputs, targets):
        return (1 + targets).sum().double()


def all_batches():
    """Batches of sizes 5, 5, 5, 5 and 3, with targets that do not count."""
    inputs, targets = drawn(23, 4), torch.arange(23) % 3
    targets[[1, 2, 8, 17, 22]] = -100
    return list(zip(inputs.split(5), targets.split(5)))


def counted():
    """The same, where every target counts."""
    return [(inputs, targets.clamp(min=0)) for inputs, targets in all_batches()]


def squared():
    """The same with targets for squared errors."""
    return [(x, drawn(len(x), 3, seed=i)) for i, (x, _) in enumerate(all_batches())]


CASES = {
    "weights": (dense, nn.CrossEntropyLoss(weight=WEIGHTS), all_batches, 3),
    "sum": (rectified, nn.MSELoss(reduction="sum"), squared, 1),
    "own normaliser": (dense, ByToken(), counted, 4),
    "running statistics": (convolutional, nn.CrossEntropyLoss(), counted, 2),
    "empty shard": (dense, nn.CrossEntropyLoss(), all_batches, 5),
}
"""A network, a loss, all batches, and how many of them rank 0 has."""


def objective(case, rank=None, model=None, **options):
    """The objective of a case: of one process, or of this rank's shard."""
    build, loss, batches, first = CASES[case]
    model, data = model or seeded(build).eval(), batches()
    if rank is not None:
        data = data[:first] if rank == 0 else data[first:]
        options["process_group"] = "world"
    return qn.Objective(model, loss, data, **options)


def local_knowledge(case, rank=None):
    """All that a point knows, by name."""
    function = objective(case, rank, products="graph")
    w = function.layout.flatten(function.model)
    point = function.at(w)
    v, size = drawn(len(w), 3, seed=5), len(w)
    leaf = w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(leaf), leaf, create_graph=True)
    (product,) = torch.autograd.grad(slope, leaf, v[:, 0])
    found = {
        "value": point.value,
        "gradient": point.gradient,
        "streamed": torch.autograd.grad(function.streamed(leaf), leaf)[0],
        "points by vmap": torch.func.vmap(function)(torch.stack([w, 1.1 * w])),
        "derivative by torch.func": torch.func.grad(function)(w),
        "derivatives by autograd": torch.cat([slope.detach(), product]),
        "GGN traces": _by_layer(curvature.ggn_traces(point)),
        "GGN diagonal": curvature.ggn_diagonal(point),
        "GGN traces by signs": _by_layer(curvature.ggn_traces_estimate(point, draws=3)),
        "Hessian traces": _by_layer(curvature.hessian_traces(point)),
        "squared gradients": curvature.squared_gradients(point),
        "slopes of samples": curvature.sample_slopes(point, drawn(size)),
    }
    for way in (
        ("graph", "record", "recompute", "auto") if case == "weights" else ("auto",)
    ):
        p = objective(case, rank, products=way).at(w)
        found[f"Hessian by {way}"] = torch.cat(
            [p.hessian @ v, (p.hessian @ w)[:, None]], 1
        )
        found[f"GGN by {way}"] = p.ggn @ v
    return found


def _by_layer(traces):
    return torch.tensor([t.value for t in (*traces.traces.values(), traces.total)])


def spectra(rank=None):
    """Eigenvalues, densities and traces of the Hessian by random numbers."""
    function = objective("weights", rank, products="graph")
    hessian = function.at(function.layout.flatten(function.model)).hessian
    pairs = curvature.lanczos(hessian, 1, tolerance=1e-9)
    density = curvature.spectral_density(hessian, samples=2, steps=5)
    one = curvature.power_method(hessian, tolerance=1e-3)
    return {
        "Lanczos": torch.as_tensor(pairs.values),
        "power method": torch.tensor([one.value, one.iterations]),
        "spectral density": torch.cat([density.nodes, density.weights]),
        "Hutchinson": _numbers(curvature.hutchinson_trace(hessian, samples=5, block=2)),
        "Hutch++": _numbers(curvature.hutch_plus_plus_trace(hessian, samples=9)),
        "Hutchinson's diagonal": curvature.hutchinson_diagonal(
            hessian, samples=4
        ).values,
    }


def _numbers(estimate):
    return torch.tensor([estimate.value, estimate.error], dtype=torch.float64)


MEASURES = [
    "Hessian, trace", "node-wise spectral norm", "PAC-Bayes bound", "Fisher–Rao norm",
    "minimum sharpness", "adaptive sharpness",
]  # fmt: skip
"""Of a report: one of every sort, for all take long."""


def reported(rank=None):
    """The values and errors of a report."""
    function = objective("sum", rank, products="graph")
    point = function.at(function.layout.flatten(function.model))
    scales = qn.Scale("0.weight", 0), qn.Scale("0.bias", 0), qn.Scale("2.weight", 1, -1)
    group = qn.ScalingGroup.from_units(function.layout, [qn.Unit("hidden", 5, scales)])
    rows = qn.sharpness.report(point, group, points=1, measures=MEASURES)
    numbers = {row.label: (row.values, row.errors, row.reason) for row in rows}
    return {
        label: torch.tensor([*values, *errors], dtype=torch.float64)
        for label, (values, errors, reason) in numbers.items()
        if reason is None
    }


COMPARED = {case: partial(local_knowledge, case) for case in CASES} | {
    "spectra": spectra,
    "report": reported,
}
"""Functions of the rank, or of None for one process, that return tensors by name."""


# --- what goes wrong, on rank 1 only


class Failing(nn.Module):
    """Divides by zero, once that is switched on."""

    def __init__(self):
        super().__init__()
        self.inner, self.fails = seeded(dense), False

    def forward(self, x):
        """As the network inside, or not at all."""
        return self.inner(x) * (1 / 0 if self.fails else 1)


def _failure(function):
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def failures(rank):
    """The class and message of the error on this rank, by what went wrong on rank 1."""
    found = {}

    def record(name, function):
        found[name] = _failure(function)

    def at_weights(function, w=None):
        w = function.layout.flatten(function.model) if w is None else w
        return function.at(w)

    def made(loss=None, batches=None, model=None):
        data = (batches or counted)()
        data = data[:3] if rank == 0 else data[3:]
        return qn.Objective(
            model or seeded(dense),
            loss or nn.CrossEntropyLoss(),
            data,
            process_group="world",
        )

    def spoilt(value):
        def batches():
            data = counted()
            data[4][0][1, 2] = value
            return data

        return batches

    def mislabelled():
        data = counted()
        data[4][1][0] = 7
        return data

    record("NaN in a batch", lambda: at_weights(made(batches=spoilt(torch.nan))))
    record("label of no class", lambda: at_weights(made(batches=mislabelled)))
    failing = Failing()
    failing_objective = made(model=failing)
    point = at_weights(failing_objective)
    failing.fails = rank == 1
    for name, function in {
        "model fails in a value": lambda: failing_objective(point.w),
        "model fails in a gradient": lambda: point.gradient,
        "model fails in a product": lambda: point.hessian @ point.w,
        "model fails in traces": lambda: curvature.ggn_traces(point),
        "model fails in a sample": lambda: curvature.sample_slopes(point, point.w),
        "model fails in a report": lambda: qn.sharpness.report(
            point, qn.ScalingGroup(point.layout, {}), elements={"same": torch.zeros(0)},
            points=0, measures=["PAC-Bayes bound"],
        ),
    }.items():  # fmt: skip
        record(name, function)
    failing.fails = False
    record("another model", lambda: made(model=seeded((dense, convolutional)[rank])))
    frozen = seeded(dense)
    frozen[0].requires_grad_(False)
    frozen[0].bias.data[0] += rank
    record("other frozen parameters", lambda: made(model=frozen))
    record(
        "another loss", lambda: made(loss=(nn.CrossEntropyLoss(), nn.MSELoss())[rank])
    )
    record(
        "a sum",
        lambda: at_weights(
            made(loss=nn.CrossEntropyLoss(reduction=("mean", "sum")[rank]))
        ),
    )
    record("another point", lambda: at_weights(made(), drawn(len(point.w), seed=rank)))
    record(
        "NaN in the point", lambda: at_weights(made(), point.w * (1, torch.nan)[rank])
    )
    record("other vectors", lambda: point.hessian @ drawn(len(point.w), seed=rank))
    record("another mode", lambda: made(model=seeded(dense).train(rank == 0))(point.w))
    record(
        "another call",
        lambda: (point.objective, point.objective.value_and_gradient)[rank](point.w),
    )
    record("no data", lambda: at_weights(made(batches=list)))
    record("data of no kind", lambda: qn.Objective(
        failing, nn.CrossEntropyLoss(), (counted(), 3)[rank], process_group="world"
    ))  # fmt: skip
    record("the same data", lambda: at_weights(qn.Objective(
        failing, nn.CrossEntropyLoss(), counted(), process_group="world"
    )))  # fmt: skip
    sampler = DistributedSampler(range(23), RANKS, rank, shuffle=False)
    loader = DataLoader(
        TensorDataset(drawn(23, 4), torch.arange(23) % 3), 5, sampler=sampler
    )
    record("repeated samples", lambda: qn.Objective(
        failing, nn.CrossEntropyLoss(), loader, process_group="world"
    ))  # fmt: skip
    record(
        "a shard alone", lambda: qn.Objective(failing, nn.CrossEntropyLoss(), loader)
    )
    record("nothing", lambda: at_weights(made()).gradient)
    return found


def command(rank, folder):
    """What this rank prints of a report, and the exit status."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    report.can_draw = lambda: False
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main([
            "report", "--model", "ranks:network", "--data", "ranks:shard", "--loss", "ranks:LOSS",
            "--measures", "Fisher–Rao norm", "PAC-Bayes bound", "--output", f"{folder}/report",
        ])  # fmt: skip
    return printed.getvalue(), status


def network():
    """The network of the report."""
    return seeded(rectified)


LOSS = CASES["weights"][1]


def shard():
    """This rank's batches for the report; all without torchrun's variables."""
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return all_batches()[rank::count]


def lost(rank):
    """What rank 0 says where rank 1 does not come, and where it is no more."""
    slow = dist.new_group(timeout=timedelta(seconds=1))
    model, data = seeded(dense), counted()[rank : rank + 1]
    function = qn.Objective(model, nn.CrossEntropyLoss(), data, process_group="world")
    waiting = qn.Objective(model, nn.CrossEntropyLoss(), data, process_group=slow)
    w = function.layout.flatten(model)
    found = {}
    if rank == 0:
        found["does not come"] = _failure(lambda: waiting(w))
    dist.barrier()
    if rank == 1:
        os._exit(ENDED)
    found["has ended"] = _failure(lambda: function(w))
    return found


def wrapped(rank):
    """Values and gradients of a model in ``DistributedDataParallel``."""
    inner = seeded(CASES["running statistics"][0]).eval()
    model = DistributedDataParallel(inner)
    found = {}
    for name, each in {"inner": inner, "DDP": model}.items():
        function = objective("running statistics", rank, model=each)
        w = function.layout.flatten(each)
        point = function.at(w)
        found[name] = torch.cat([w, point.gradient, point.hessian @ w])
        found[f"{name} names"] = function.layout.names
    return found


def run(rank, folder):
    """Everything on one rank of two; the results are written to a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=300),
    )  # fmt: skip
    found = {name: compute(rank) for name, compute in COMPARED.items()}
    found["wrapped"], found["failures"] = wrapped(rank), failures(rank)
    found["command"] = command(rank, folder)
    torch.save(found, f"{folder}/{rank}")
    torch.save(lost(rank), f"{folder}/lost")
