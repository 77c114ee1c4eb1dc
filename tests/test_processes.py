"""Two processes that share the batches: everything is that of one, and one's failure is both's."""

import json
import pickle
import textwrap
from pathlib import Path

import pytest
import ranks
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

import quotientnet as qn
from quotientnet.__main__ import main

pytestmark = pytest.mark.slow  # they start processes

FAILURES = {
    "NaN in a batch": ("ValueError", "loss is nan at this point on the batches of rank 1"),
    "label of no class": ("ValueError", "rank 1 of 2, at a value: Objective: 1 targets are no"),
    "model fails in a value": ("RuntimeError", "rank 1 of 2, at a value: ZeroDivisionError"),
    "model fails in a gradient": ("RuntimeError", "rank 1 of 2, at a gradient: ZeroDivision"),
    "model fails in a product": (
        "RuntimeError", "rank 1 of 2, at a product with the Hessian: ZeroDivisionError"
    ),
    "model fails in traces": ("RuntimeError", "rank 1 of 2, at the traces of layers: ZeroDiv"),
    "model fails in a sample": ("RuntimeError", "rank 1 of 2, at single samples: ZeroDivision"),
    "model fails in a report": ("RuntimeError", "rank 1 of 2, at a value: ZeroDivisionError"),
    "another model": ("RuntimeError", "ranks 0 and 1 differ in layout"),
    "other frozen parameters": ("RuntimeError", "ranks 0 and 1 differ in frozen tensors"),
    "another loss": ("RuntimeError", "ranks 0 and 1 differ in loss"),
    "a sum": ("RuntimeError", "the loss is a sum on some ranks and a mean on others"),
    "another point": ("RuntimeError", "ranks 0 and 1 differ in point, at a point"),
    "NaN in the point": ("ValueError", "rank 1 of 2, at a point: .* has 20 NaN"),
    "other vectors": ("RuntimeError", "ranks 0 and 1 differ in vectors"),
    "another mode": ("RuntimeError", "ranks 0 and 1 differ in modes"),
    "another call": ("RuntimeError", "rank 0 computes a value, rank 1 a gradient"),
    "no data": ("ValueError", "data has no batches"),
    "data of no kind": ("ValueError", "rank 1 of 2, at the construction: .* data is a int"),
    "the same data": ("UserWarning", "all ranks have the same first batch"),
    "repeated samples": ("ValueError", "DistributedSampler repeats 1 of 23 samples"),
    "a shard alone": ("UserWarning", "data are one of 2 shards"),
    "nothing": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes, started once, have left what they found; rank 1 ends by itself."""
    folder = str(tmp_path_factory.mktemp("ranks"))
    context = torch.multiprocessing.spawn(ranks.run, (folder,), ranks.RANKS, join=False)
    for process in context.processes:
        process.join()
    codes = [process.exitcode for process in context.processes]
    if codes != [0, ranks.ENDED]:
        context.join()  # raises the error of the rank that failed first
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each rank found, by name."""
    return [
        torch.load(f"{folder}/{rank}", weights_only=False)
        for rank in range(ranks.RANKS)
    ]


@pytest.mark.parametrize("name", ranks.COMPARED)
def test_two_processes_find_what_one_does(found, name):
    one = ranks.COMPARED[name]()
    for key, expected in one.items():
        here, there = (each[name][key] for each in found)
        assert torch.equal(here, there), key  # all ranks go on with the same bits
        assert expected.norm() > 0 and torch.isfinite(expected).all(), key
        gap = float((here - expected).norm() / expected.norm())
        assert gap < 1e-10, (key, gap)


def test_every_measure_was_reported(found):
    assert list(found[0]["report"]) == ranks.MEASURES


@pytest.mark.parametrize("name", FAILURES)
def test_what_one_rank_does_wrong_is_an_error_on_both(found, name):
    here, there = (each["failures"][name] for each in found)
    assert here == there
    if FAILURES[name] is None:
        assert here is None
        return
    kind, message = FAILURES[name]
    assert here[0] == kind
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(here[1])


def test_all_failures_are_expected(found):
    assert list(found[0]["failures"]) == list(FAILURES)


def test_a_rank_that_does_not_come_or_has_ended_is_an_error(folder):
    for kind, message in torch.load(f"{folder}/lost", weights_only=False).values():
        assert kind == "RuntimeError"
        assert "rank 0 of 2 has lost another one at a value" in message


def test_a_model_in_distributed_data_parallel_is_the_one_inside(found):
    here = found[0]["wrapped"]
    assert here["DDP names"] == here["inner names"]
    assert torch.equal(here["DDP"], here["inner"])


def test_the_first_process_prints_and_writes_what_one_does(
    found, folder, tmp_path, capsys
):
    (printed, status), (nothing, other) = (each["command"] for each in found)
    assert (status, other, nothing) == (0, 0, "") and "Fisher–Rao norm" in printed
    main([
        "report", "--model", "ranks:network", "--data", "ranks:shard", "--loss", "ranks:LOSS",
        "--measures", "Fisher–Rao norm", "PAC-Bayes bound", "--output", str(tmp_path),
    ])  # fmt: skip
    one, two = (
        json.loads(Path(place, "report.json").read_text())["networks"]["ranks:network"]
        for place in (tmp_path, f"{folder}/report")
    )
    for row, same in zip(one["report"]["rows"], two["report"]["rows"], strict=True):
        assert same["values"] == pytest.approx(row["values"], rel=1e-10, abs=0)
    assert "Fisher–Rao norm" in capsys.readouterr().out


def test_the_manuals_script_runs(monkeypatch, capsys):
    for name, value in zip(
        ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), "0 1 localhost 0".split()
    ):
        monkeypatch.setenv(name, value)
    text = Path(__file__, "../../docs/howto/processes.rst").resolve().read_text()
    script = text.split(".. code-block:: python\n\n", 1)[1].split("\n.. code-block", 1)[
        0
    ]
    exec(compile(textwrap.dedent(script), "spectrum.py", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    promised = text.split("spectrum.py\n")[2].split("\n\n")[0]
    assert printed == textwrap.dedent(promised).splitlines()


# --- in one process


@pytest.fixture
def alone():
    """A group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_of_one_is_one_process(alone):
    function = ranks.objective("weights")
    w = function.layout.flatten(function.model)
    data = ranks.all_batches()
    group = qn.Objective(
        function.model, function.loss, data, process_group=dist.group.WORLD
    )
    point, other = function.at(w), group.at(w)
    torch.testing.assert_close(other.gradient, point.gradient, rtol=1e-12, atol=0)
    torch.testing.assert_close(other.hessian @ w, point.hessian @ w, rtol=1e-12, atol=0)
    with pytest.raises(TypeError, match="make the objective anew"):
        pickle.dumps(group)


def test_without_a_group_an_objective_is_this_process_alone(alone, monkeypatch):
    for name in ("all_gather", "all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, None)
    function = ranks.objective("weights")
    point = function.at(function.layout.flatten(function.model))
    assert torch.isfinite(point.gradient).all()  # a collective would be a call of None


@pytest.mark.parametrize(
    "group, kind, message",
    [
        ("world", ValueError, "init_process_group"),
        ("all", ValueError, "must be 'world' or a ProcessGroup, got 'all'"),
        (2, TypeError, "must be 'world' or a torch.distributed.ProcessGroup, got int"),
        (dist.GroupMember.NON_GROUP_MEMBER, ValueError, "this process is not in"),
    ],
)
def test_what_is_no_group_is_refused(group, kind, message):
    with pytest.raises(kind, match=message):
        qn.Objective(
            ranks.dense(), nn.CrossEntropyLoss(), ranks.counted(), process_group=group
        )


def compiled_inside(model):
    """A network with a module that is compiled in place, and one in a wrapper."""
    model[0].compile(backend="aot_eager")
    return nn.Sequential(torch.compile(model, backend="aot_eager"), nn.Tanh())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, compiled_inside])
def test_wrapped_and_compiled_models_are_taken_as_they_are_written(wrap):
    plain = ranks.seeded(ranks.dense)
    reference = (
        plain if wrap is not compiled_inside else nn.Sequential(plain, nn.Tanh())
    )
    expected = ranks.objective("weights", model=reference)
    with torch.compiler.set_stance("fail_on_recompile"):  # it is never compiled
        wrapped = wrap(ranks.seeded(ranks.dense))
        function = ranks.objective("weights", model=wrapped)
        w = function.layout.flatten(wrapped)
        point, same = function.at(w), expected.at(w)
        assert torch.equal(point.gradient, same.gradient)
        assert torch.equal(point.hessian @ w, same.hessian @ w)
        group = qn.discover(wrapped, ranks.drawn(3, 4)).group
        assert qn.transform(wrapped, group, torch.zeros(group.dimension)) is not wrapped
    if wrap is not compiled_inside:
        assert (
            function.layout
            == expected.layout
            == qn.ParameterLayout.from_module(wrapped)
        )
        assert function.model is not wrapped
        function.layout.assign(wrapped, 2 * w)
        assert torch.equal(expected.layout.flatten(wrapped), 2 * w)
