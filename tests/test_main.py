"""The main job, its parts and its refusals; a user's own model, data and checkpoint."""

import json
import logging
import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from quotientnet import __main__ as program
from quotientnet.commands import embedded, loading
from quotientnet.commands.embedded import Recipe
from quotientnet.commands.refusal import Refusal
from quotientnet.digits import load_digits, make_network, make_normalised_network, train
from quotientnet.sharpness.catalogue import MEASURES

SOME = [
    "Hessian, largest eigenvalue", "layer-scale spectral norm", "node-wise spectral norm",
    "node-wise trace",
]  # fmt: skip

MINE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 3, generator=generator), torch.arange(20) % 2

def batches():
    inputs, targets = batch()
    return [(inputs[:12], targets[:12]), (inputs[12:], targets[12:])]

def broken():
    raise KeyError("weights")

def smooth():
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))

def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)

def wrong_dtype():
    return batch()[0], batch()[1].int()

def wrong_shape():
    return torch.ones(20, 5), batch()[1]

def keyed():
    inputs, targets = batch()
    return {"input": inputs, "classes": targets}

def numbers():
    return [1, 2]

class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.one(x).relu()
        return self.two(2 * h if h.sum() > 0 else h)

def late(outputs, targets):
    late.calls = getattr(late, "calls", 0) + 1
    if late.calls > 6:
        raise RuntimeError("much later")
    return nn.functional.cross_entropy(outputs, targets)

number = 3
"""


@pytest.fixture
def few(monkeypatch):
    """Only some of the measures, which take no time."""
    kept = tuple(measure for measure in MEASURES if measure.label in SOME)
    monkeypatch.setattr("quotientnet.sharpness.catalogue.MEASURES", kept)


@pytest.fixture
def mine(tmp_path, monkeypatch, few):
    """A user's folder with a module and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    torch.save(model.state_dict(), "weights.pt")
    return model


def run(*options):
    return program.main(
        ["report", "--model", "mine:model", "--data", "mine:batch", *options]
    )


def written(folder="quotientnet-report"):
    (network,) = json.loads(Path(folder, "report.json").read_text())[
        "networks"
    ].values()
    return network, {row["label"]: row for row in network["report"]["rows"]}


def test_the_digits_are_reported_on_without_a_model(tmp_path, monkeypatch, few, capsys):
    recipes = {
        "short": Recipe(make_network, 64, 20, 100),
        "normalised": Recipe(make_normalised_network, 256, 2, 60),
    }
    monkeypatch.setattr(embedded, "NETWORKS", recipes)
    assert program.main(["--output", str(tmp_path), "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "rangamani2019" in printed and "normalised" in printed
    assert (tmp_path / "report.png").stat().st_size > 10_000
    networks = json.loads((tmp_path / "report.json").read_text())["networks"]
    assert networks["short"]["test_accuracy"] > 0.85
    for name, found in networks.items():
        rows = {row["label"]: row for row in found["report"]["rows"]}
        assert found["report"]["drift"] < 1e-12
        assert rows["node-wise spectral norm"]["invariant"]
        assert not rows["Hessian, largest eigenvalue"]["invariant"]
    w, paper, random = networks["short"]["report"]["rows"][1]["values"]
    assert paper == pytest.approx(w, rel=1e-6) and abs(random / w - 1) > 1e-3


def test_own_model_with_a_checkpoint(mine, capsys):
    assert (
        run("--checkpoint", "weights.pt", "--points", "1", "--loss", "mine:loss") == 0
    )
    network, rows = written()
    inputs, targets = __import__("mine").batch()
    loss = nn.functional.cross_entropy(mine.double()(inputs.double()), targets)
    assert network["report"]["losses"][0] == pytest.approx(loss.item(), rel=1e-12)
    assert network["mode"] == "eval" and network["report"]["dtype"] == "float64"
    assert rows["node-wise spectral norm"]["invariant"]
    assert len(rows["node-wise spectral norm"]["values"]) == 2
    assert network["symmetry"]["dimension"] == 4
    assert "node-wise spectral norm" in capsys.readouterr().out


def test_batches_count_as_one(mine):
    assert run() == 0
    whole = written()[0]["report"]["losses"][0]
    assert run("--data", "mine:batches") == 0
    assert written()[0]["report"]["losses"][0] == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("inside", ["state_dict", "model", "model_state_dict"])
def test_checkpoints_with_more_than_weights(mine, inside):
    torch.save({"epoch": 3, inside: mine.state_dict(), "note": "x"}, "more.pt")
    state = loading.load_state(Path("more.pt"))
    assert state.keys() == mine.state_dict().keys()
    assert all(torch.equal(state[name], t) for name, t in mine.state_dict().items())


def test_safetensors(mine, capsys, monkeypatch):
    library = pytest.importorskip("safetensors.torch")
    library.save_file(mine.state_dict(), "weights.safetensors")
    state = loading.load_state(Path("weights.safetensors"))
    assert all(torch.equal(state[name], t) for name, t in mine.state_dict().items())
    Path("broken.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(Refusal, match="not a safetensors file"):
        loading.load_state(Path("broken.safetensors"))


def test_safetensors_without_the_library(mine, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    Path("weights.safetensors").write_bytes(b"")
    with pytest.raises(Refusal, match="pip install safetensors"):
        loading.load_state(Path("weights.safetensors"))


class Touch:
    """A pickle that makes a file when it is loaded by a careless reader."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_checkpoint_is_refused_and_not_executed(mine, capsys):
    torch.save({"state_dict": mine.state_dict(), "extra": Touch()}, "bad.pt")
    Path("worse.pt").write_bytes(pickle.dumps(Touch()))
    for name in ("bad.pt", "worse.pt"):
        assert run("--checkpoint", name) == 2
        message = capsys.readouterr().err
        assert (
            f"--checkpoint {name}: refused, and nothing in it was executed" in message
        )
        assert "file an issue" not in message
        assert ("mkdir" if name == "bad.pt" else "Unsupported operand") in message
        assert not Path("executed").exists()
    pickle.loads(Path("worse.pt").read_bytes())
    assert Path("executed").exists()  # the attack works on whoever falls for it


def test_a_checkpoint_that_does_not_fit_is_named(mine, capsys):
    state = mine.state_dict()
    state["extra"] = state.pop("0.bias")
    state["2.weight"] = torch.zeros(3, 3)
    torch.save(state, "other.pt")
    assert run("--checkpoint", "other.pt") == 2
    message = capsys.readouterr().err
    assert "missing 0.bias" in message and "unexpected extra" in message
    assert "2.weight is (3, 3), the model has (2, 4)" in message
    torch.save({"epoch": 3}, "none.pt")
    assert run("--checkpoint", "none.pt") == 2
    assert "holds no state dict" in capsys.readouterr().err
    assert run("--checkpoint", "absent.pt") == 2
    assert "no such file" in capsys.readouterr().err
    Path("noise.pt").write_bytes(b"noise")
    assert run("--checkpoint", "noise.pt") == 2
    assert "--checkpoint noise.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model", "mine:absent"], "has no attribute 'absent'"),
        (["--model", "nowhere:model"], "No module named 'nowhere'"),
        (["--model", "mine"], "must be package.module:function"),
        (["--model", "mine:number"], "must return a torch.nn.Module, it returned int"),
        (["--model", "mine:broken"], "the function raised KeyError: 'weights'"),
        (["--model", "mine:smooth"], "no scaling leaves this network unchanged"),
        (["--data", "mine:number"], "data is a int"),
        (["--loss", "Linear"], "torch.nn has no loss of this name"),
        (["--points", "0"], "needs at least one point"),
        (["--spread", "0"], "needs at least one point"),
        (["--seed", "-1"], "--seed -1"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--device", "meta"], "--device meta"),
        (["--output", "mine.py"], "--output mine.py: File exists"),
    ],
)
def test_refusals_say_what_is_wrong(mine, capsys, options, message):
    assert run(*options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--data", "mine:wrong_dtype"],
            "RuntimeError: expected target dtype to be Long",
        ),
        (["--data", "mine:wrong_shape"], "RuntimeError: mat1 and mat2 shapes cannot"),
        (["--loss", "MSELoss"], "RuntimeError: The size of tensor a (2) must match"),
        (
            ["--data", "mine:keyed"],
            "no 'labels' among input, classes; pass --target-key",
        ),
        (
            ["--data", "mine:numbers"],
            "a batch must be a pair (inputs, targets) or a dict",
        ),
    ],
)
def test_data_that_the_loss_cannot_take_is_refused_in_one_line(
    mine, capfd, options, message
):
    assert run(*options) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("--data mine:") and " --loss " in line and message in line


def test_later_failures_are_not_hidden(mine):
    with pytest.raises(RuntimeError, match="much later"):
        run("--measures", "node-wise trace", "--loss", "mine:late")


def test_a_failing_export_is_one_line_and_loggers_are_as_before(mine, capfd):
    logger = logging.getLogger("torch.fx")
    level = logger.level
    assert run("--model", "mine:Branching") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("--model mine:Branching: discover: the model cannot be")
    assert logger.level == level


def test_dict_batches_and_chosen_measures(mine, capsys):
    label = "node-wise trace"
    assert (
        run("--data", "mine:keyed", "--target-key", "classes", "--measures", label) == 0
    )
    assert list(written()[1]) == [label]
    assert run("--measures", "nothing") == 2
    assert "--measures: no measure is called 'nothing'" in capsys.readouterr().err


def test_files_that_torch_did_not_write(mine, capsys):
    for name, content in (("empty.pt", b""), ("garbage.pt", bytes(range(1, 99)))):
        Path(name).write_bytes(content)
        assert run("--checkpoint", name) == 2
        message = capsys.readouterr().err.strip()
        assert message == f"--checkpoint {name}: not a checkpoint that torch.save wrote"
    Path("cut.pt").write_bytes(Path("weights.pt").read_bytes()[:500])
    assert run("--checkpoint", "cut.pt") == 2
    message = capsys.readouterr().err
    assert "cannot be read" in message and "miniz" not in message
    torch.save(mine.state_dict(), "old.pt", _use_new_zipfile_serialization=False)
    assert loading.load_state(Path("old.pt")).keys() == mine.state_dict().keys()


def test_a_data_parallel_checkpoint_is_taken_without_its_prefix(mine, capsys):
    state = {f"module.{name}": t for name, t in mine.state_dict().items()}
    torch.save(state, "parallel.pt")
    model = loading.load_model("mine:model", Path("parallel.pt"))
    assert all(bool((p == 0.25).all()) for p in model.parameters())
    assert "every name begins with 'module.'" in capsys.readouterr().err
    state["0.weight"] = state.pop("module.0.weight")
    torch.save(state, "mixed.pt")
    with pytest.raises(Refusal, match="unexpected module.0.bias"):
        loading.load_model("mine:model", Path("mixed.pt"))


def test_options_that_belong_to_a_model(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert program.main(["--checkpoint", "x"]) == 2
    assert "--checkpoint needs --model" in capsys.readouterr().err
    assert program.main(["--model", "a:b"]) == 2
    assert "needs --data" in capsys.readouterr().err
    for options in (["--dtype", "float16"], ["nothing"]):
        with pytest.raises(SystemExit) as stopped:
            program.main(options)
        assert stopped.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(["--help"])
    text = capsys.readouterr().out
    assert (
        stopped.value.code == 0
        and "python -m quotientnet report --model mine:model" in text
    )
    for name in (
        "data",
        "target-key",
        "measures",
        "loss",
        "checkpoint",
        "points",
        "spread",
        "seed",
        "mode",
        "output",
    ):
        assert f"--{name}" in text


def test_training_depends_on_the_seed_alone():
    digits = load_digits(seed=1)
    weights = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        network = make_network(seed=2)
        train(network, digits, batch_size=500, epochs=1, seed=3)
        weights.append(
            torch.cat([p.detach().reshape(-1) for p in network.parameters()])
        )
    assert torch.equal(*weights)
    with pytest.raises(ValueError, match="batch_size=0"):
        train(make_network(), digits, batch_size=0, epochs=1)
    with pytest.raises(RuntimeError, match="the loss is nan; lower the learning rate"):
        train(make_network(), digits, batch_size=1437, epochs=9, learning_rate=1e200)
