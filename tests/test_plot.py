"""What the pictures show is what they were given; lines and planes of the loss."""

import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from test_report import norm, problem

import quotientnet as qn
from quotientnet import plot
from quotientnet.curvature import ggn_traces, spectral_density
from quotientnet.sharpness import (
    digits_trials,
    invariance_matrix,
    layer_normalised_direction,
    loss_along,
    loss_over,
    report,
)

matplotlib.use("Agg")


def quotient(kind=qn.LayerScaleQuotient):
    point, symmetry = problem()
    return point, kind(symmetry), symmetry


def drawn(figure, tmp_path):
    """The figure's texts; it can be saved, and nothing of it is cut off."""
    path = tmp_path / "figure.png"
    figure.savefig(path, dpi=60)
    assert path.stat().st_size > 3_000
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


# -- lines and planes ---


@pytest.mark.parametrize("kind", [qn.LayerScaleQuotient, qn.NodeWiseQuotient])
def test_a_direction_is_horizontal_and_moves_every_tensor_by_its_own_size(kind):
    point, manifold, _ = quotient(kind)
    xi = layer_normalised_direction(point.w, manifold)
    torch.testing.assert_close(manifold.proju(point.w, xi), xi)
    noise = torch.randn(
        point.w.shape, generator=torch.Generator().manual_seed(0), dtype=xi.dtype
    )
    pieces = zip(point.layout.split(point.w), point.layout.split(noise))
    if kind is qn.LayerScaleQuotient:  # the paper's formula, then the horizontal part
        plain = torch.cat([v * w.norm() / v.norm() for w, v in pieces])
    else:  # every weight is a block: |w_i| v_i, of norm 1 a tensor in the metric
        plain = torch.cat([v * w.abs() / v.norm() for w, v in pieces])
    torch.testing.assert_close(xi, manifold.proju(point.w, plain))
    assert 0 < manifold.norm(point.w, xi) <= len(point.layout.entries) ** 0.5


def test_a_line_is_the_loss_on_the_geodesic_and_the_same_at_equivalent_points():
    point, manifold, symmetry = quotient()
    xi = layer_normalised_direction(point.w, manifold)
    steps = torch.linspace(-1, 1, 9)
    line = loss_along(point, manifold, xi, steps)
    for t, loss in zip(steps.double(), line.losses):
        assert loss == pytest.approx(
            point.objective(manifold.expmap(point.w, t * xi)).item()
        )
    assert line.losses[4] == point.value
    t = symmetry.layer_scales.random(generator=torch.Generator().manual_seed(2))
    y = point.objective.at(symmetry.layer_scales.act(point.w, t))
    moved = loss_along(y, manifold, symmetry.layer_scales.act(xi, t), steps)
    torch.testing.assert_close(moved.losses, line.losses, rtol=1e-11, atol=0)
    again = layer_normalised_direction(y.w, manifold)
    torch.testing.assert_close(
        loss_along(y, manifold, again, steps).losses, line.losses
    )
    straight = loss_along(point, manifold, xi, steps, straight=True)
    assert straight.losses[8] == point.objective(point.w + xi)
    assert not torch.allclose(straight.losses, line.losses)


def test_a_plane_holds_its_lines():
    point, manifold, _ = quotient()
    generator = torch.Generator().manual_seed(3)
    a, b = (
        layer_normalised_direction(point.w, manifold, generator=generator)
        for _ in range(2)
    )
    steps = [-0.5, 0.0, 1.0]
    plane = loss_over(point, manifold, a, b, steps)
    torch.testing.assert_close(
        plane.losses[:, 1], loss_along(point, manifold, a, steps).losses
    )
    torch.testing.assert_close(
        plane.losses[1], loss_along(point, manifold, b, steps).losses
    )
    corner = point.objective(manifold.expmap(point.w, a - 0.5 * b))
    assert plane.losses[2, 0] == pytest.approx(corner.item())


def test_lines_refuse_bad_input():
    point, manifold, symmetry = quotient()
    xi = layer_normalised_direction(point.w, manifold)
    with pytest.raises(
        TypeError, match="loss_along: manifold must be a QuotientManifold"
    ):
        loss_along(point, symmetry, xi, [0.0])
    with pytest.raises(ValueError, match="loss_along: direction must be a tangent"):
        loss_along(point, manifold, xi[:-1], [0.0])
    with pytest.raises(ValueError, match="loss_over: second must be a tangent"):
        loss_over(point, manifold, xi, None, [0.0])
    for steps in ([], [float("nan")], 1.0):
        with pytest.raises(ValueError, match="steps must be a list of finite numbers"):
            loss_along(point, manifold, xi, steps)
    with pytest.raises(NotImplementedError, match="expmap"):
        loss_along(point, qn.BalancedQuotient(symmetry), xi, [0.5])


# -- pictures ---


def test_lines_and_planes_are_drawn(tmp_path):
    point, manifold, _ = quotient()
    xi = layer_normalised_direction(point.w, manifold)
    line = loss_along(point, manifold, xi, torch.linspace(-1, 1, 5))
    figure = plot.plot_lines({"small": [line, line], "large": [line]})
    (axis,) = figure.axes
    assert len(axis.lines) == 3
    np.testing.assert_allclose(axis.lines[0].get_ydata(), line.losses)
    assert {"small", "large", "loss"} <= set(drawn(figure, tmp_path))
    plane = loss_over(point, manifold, xi, -xi, torch.linspace(-1, 1, 5))
    figure = plot.plot_plane(plane, title="here")
    assert {"here", "log10 of the loss"} <= set(drawn(figure, tmp_path))
    with pytest.raises(ValueError, match="nowhere positive"):
        plot.plot_plane(SimpleNamespace(losses=torch.zeros(2, 2)))


def test_density_and_layers_are_drawn(tmp_path):
    point, _ = problem()
    density = spectral_density(point.hessian, samples=3, steps=10)
    figure = plot.plot_density({"a": density, "b": density}, width=0.1, unit="loss")
    line = figure.axes[0].lines[0]
    expected, _ = density.density(torch.as_tensor(line.get_xdata()), 0.1)
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert "eigenvalue (loss)" in drawn(figure, tmp_path)
    traces = ggn_traces(point)
    figure = plot.plot_layers({"here": traces}, unit="trace")
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(widths, [t.value for t in traces.traces.values()])
    assert {"here", "trace", "0.weight"} <= set(drawn(figure, tmp_path))
    with pytest.raises(ValueError, match="'x' has no parts"):
        plot.plot_layers({"x": qn.Estimate(1.0, 0.0, True, 0)})


def test_changes_are_drawn(tmp_path):
    def refusing(point, group):
        raise ValueError("no")

    measures = {
        "norm": norm,
        "loss": lambda p, g: qn.Estimate(float(p.value), 0.0, True, 0),
    }
    found = report(*problem(), measures=measures | {"refusing": refusing})
    figure = plot.plot_changes({"one": found, "two": found})
    assert len(figure.axes) == 2
    values = [x for line in figure.axes[0].lines for x in line.get_xdata()]
    expected = [abs(v / found["norm"].values[0] - 1) for v in found["norm"].values[1:]]
    assert all(any(x == pytest.approx(e) for x in values) for e in expected)
    texts = drawn(figure, tmp_path)
    assert texts.count("does not apply") == 2 and {"one", "two", "random 1"} <= set(
        texts
    )


def test_the_matrix_is_drawn(tmp_path):
    trials = [t for t in digits_trials(images=20) if t.key in ("layer", "shift")]
    matrix = invariance_matrix({"norm": norm}, trials, elements=1)
    texts = drawn(plot.plot_matrix(matrix), tmp_path)
    assert texts.count("✗") == 2 and {"norm", *matrix.trials} <= set(texts)


def test_scatter_against_the_gap(tmp_path):
    gaps, labels = [0.01, 0.02, 0.05], ["a", "b", "c"]
    found = {"up": [1.0, 2.0, 3.0], "down": [3.0, -2.0, -4.0]}
    figure = plot.plot_against_gap(found, gaps, labels=labels)
    assert [a.get_title() for a in figure.axes] == [
        "Kendall's τ +1.00",
        "Kendall's τ -1.00",
    ]
    assert [float(line.get_ydata()[0]) for line in figure.axes[0].lines] == [
        1.0,
        2.0,
        5.0,
    ]
    assert {*labels, "up", "down"} <= set(drawn(figure, tmp_path))
    with pytest.raises(ValueError, match="'x' has 1 values for 3 gaps"):
        plot.plot_against_gap({"x": [1.0]}, gaps)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ModuleNotFoundError, match="plot_lines needs matplotlib: pip install"
    ):
        plot.plot_lines({"none": []})


@pytest.mark.parametrize(
    "draw",
    [plot.plot_lines, plot.plot_density, plot.plot_layers, plot.plot_changes],
)
def test_what_has_no_names_or_nothing_in_it_is_refused(draw):
    with pytest.raises(TypeError, match=r"must be a mapping from names, got Estimate"):
        draw(qn.Estimate(1.0, 0.0, True, 0))
    with pytest.raises(ValueError, match=f"{draw.__name__}: .* is empty"):
        draw({})


def test_numbers_that_cannot_be_drawn_are_refused():
    gaps = [0.1, 0.2]
    for message, arguments in (
        ("1 labels for 2 gaps", ({"a": [1, 2]}, gaps, ["x"])),
        ("'a' has NaN or infinite", ({"a": [1.0, float("nan")]}, gaps, None)),
        ("'gaps' has NaN or infinite", ({"a": [1, 2]}, [0.1, float("inf")], None)),
        ("sharpness is empty", ({}, gaps, None)),
    ):
        values, gaps_, labels = arguments
        with pytest.raises(ValueError, match=message):
            plot.plot_against_gap(values, gaps_, labels=labels)
    density = spectral_density(problem()[0].hessian, samples=2, steps=5)
    for width in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="width must be above 0"):
            plot.plot_density({"a": density}, width=width)


def parts(*values):
    layers = {f"{i}.weight": qn.Estimate(v, 0.0, True, 0) for i, v in enumerate(values)}
    return {"here": qn.Estimate(sum(values), 0.0, True, 0, layers=layers)}


def test_parts_of_one_size_have_a_linear_axis(tmp_path):
    close = plot.plot_layers(parts(1.0, 2.0, 9.9))
    assert close.axes[0].get_xscale() == "linear" and close.axes[0].get_xlim()[0] == 0
    far = plot.plot_layers(parts(1.0, 2.0, 30.0))
    assert far.axes[0].get_xscale() == "log"
    drawn(far, tmp_path)
    assert not any(t.get_text() for t in far.axes[0].get_xticklabels(minor=True))


def test_a_point_that_was_refused_is_not_drawn(tmp_path):
    calls = iter(range(3))

    def sometimes(point, group):
        if next(calls) == 1:
            raise ValueError("no")
        return qn.Estimate(1.0, 0.0, True, 0)

    endless = {"far": lambda p, g: qn.Estimate(float("nan"), 0.0, True, 0)}
    found = report(*problem(), measures={"sometimes": sometimes} | endless)
    figure = plot.plot_changes({"one": found})
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == 1
    assert "not finite" in drawn(figure, tmp_path)


def test_ticks_of_a_plane_do_not_overlap(tmp_path):
    point, manifold, _ = quotient()
    xi = layer_normalised_direction(point.w, manifold)
    figure = plot.plot_plane(
        loss_over(point, manifold, xi, -xi, torch.linspace(-1, 1, 5))
    )
    drawn(figure, tmp_path)
    boxes = [t.get_window_extent() for t in figure.axes[0].get_xticklabels()]
    boxes = [box for box in boxes if box.width]
    assert len(boxes) >= 3
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))
