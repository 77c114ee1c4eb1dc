"""The main job, its parts and its refusals."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import quotientnet as qn
from quotientnet import __main__ as program
from quotientnet.digits import load_digits, make_network, train
from quotientnet.invariance import (
    COLUMNS,
    format_table,
    measure_points,
)
from quotientnet.plot import plot_invariance


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder, short = tmp_path_factory.mktemp("report"), {"short (64)": (64, 20)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "NETWORKS", short)
        assert program.main(["--output", str(folder), "--seed", "3"]) == 0
    return folder, json.loads((folder / "report.json").read_text())


def test_report_shows_what_moves_and_what_does_not(finished):
    folder, report = finished
    assert (folder / "invariance.png").stat().st_size > 10_000
    (network,) = report["networks"].values()
    assert network["test_accuracy"] > 0.85
    first, *rest = network["points"]
    assert len(rest) == 4 and all(row["converged"] for row in network["points"])
    for row in rest:
        now, then = row["values"], first["values"]
        assert now["loss"] == pytest.approx(then["loss"], rel=1e-12)
        assert now["node_wise_norm"] == pytest.approx(then["node_wise_norm"], rel=1e-9)
        assert now["node_wise_distance"] < 1e-9
        assert abs(now["spectral_norm"] / then["spectral_norm"] - 1) > 1
        in_group = row["point"] != "random unit scales"
        assert (now["layer_scale_distance"] < 1e-9) == in_group
        assert (
            abs(now["layer_scale_norm"] / then["layer_scale_norm"] - 1) < 1e-9
        ) == in_group


def test_table_marks_at_a_glance(finished):
    digits = load_digits()
    network = make_network()
    data = (digits.train_inputs[:100], digits.train_targets[:100])
    objective = qn.Objective(network, nn.CrossEntropyLoss(), data)
    symmetry = qn.discover(network, data[0])
    rows = measure_points(
        objective, objective.layout.flatten(network), symmetry, trace_samples=50
    )
    lines = format_table(rows).splitlines()
    assert all(name in lines[0] for name in COLUMNS.values())
    assert "=" not in lines[2] and "≠" not in lines[2]
    assert lines[3].count("=") - lines[3].count("λ =") == 5 and lines[3].count("≠") == 2
    moved = replace(rows[1], values={k: 2 * v for k, v in rows[1].values.items()})
    assert format_table([rows[0], moved]).splitlines()[3].count("≠") == 5
    assert len(plot_invariance({"a": rows, "b": rows}).axes) == 2


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


def test_refusals(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        program.main(["--dtype", "float16"])
    assert "invalid choice" in capsys.readouterr().err
    assert program.main(["--device", "nowhere"]) == 2
    assert "--device nowhere" in capsys.readouterr().err
    assert program.main(["--device", "meta"]) == 2
    assert program.main(["--output", __file__]) == 2
    assert f"--output {__file__}: File exists" in capsys.readouterr().err
    assert program.main(["--seed", str(2**70)]) == 2
    digits = load_digits()
    with pytest.raises(ValueError, match="batch_size=0"):
        train(make_network(), digits, batch_size=0, epochs=1)
    with pytest.raises(RuntimeError, match="the loss is nan; lower the learning rate"):
        train(make_network(), digits, batch_size=1437, epochs=9, learning_rate=1e200)
