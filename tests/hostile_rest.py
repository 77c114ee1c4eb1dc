"""More calls: constructors, training, the kit, pictures, experiments."""

from __future__ import annotations

import copy

import torch
from torch import nn

import quotientnet as qn
from quotientnet import curvature, plot, reparametrisation, sharpness, symmetry, testing, training
from quotientnet.symmetry import verify_translations_complete

FLOAT = torch.float64


def add_all(add) -> None:
    """Add what is not in ``hostile.py``."""
    _add_constructors(add)
    _add_rest(add)
    _add_training(add)
    _add_testing(add)
    _add_plot(add)


def _add_constructors(add) -> None:
    def from_module(module, include_frozen):
        return qn.ParameterLayout.from_module(module, include_frozen=include_frozen)

    def on_layout(name):
        return lambda self_, **given: getattr(self_.layout, name)(**given)

    def on_group(name):
        return lambda self_, **given: getattr(self_.group, name)(**given)

    hidden = qn.Unit("hidden", 4, (qn.Scale("0.weight", 0), qn.Scale("0.bias", 0)))
    add(qn.ParameterLayout, lambda o: {
        "parameters": {"a": (2, 3)}, "passive": {"b": (2,)}, "aliases": {"c": "a"}}, room="layout")
    add(from_module, lambda o: {"module": o.model, "include_frozen": False},
        label="layout.from_module")
    add(on_layout("substitutes"), lambda o: {"self_": o, "module": o.model, "w": o.w},
        label="layout.substitutes")
    add(on_layout("count"), lambda o: {"self_": o, "mask": o.w > 0}, label="layout.count")
    add(on_group("without"), lambda o: {"self_": o, "generators": o.t > 0},
        label="group.without")
    add(on_group("gram"), lambda o: {"self_": o, "weight": o.w.square()}, label="group.gram")
    add(qn.ScalingGroup, lambda o: {
        "layout": o.layout, "incidence": o.group.incidence, "classes": o.group.classes,
        "names": list(o.group.names)}, room="group")
    add(qn.ScalingGroup.from_units, lambda o: {"layout": o.layout, "units": [hidden]},
        label="group.from_units")
    add(qn.Unit, lambda o: {"name": "hidden", "channels": 4, "scales": hidden.scales},
        room="group")
    add(qn.Scale, lambda o: {"name": "a", "axis": 0, "exponent": 1}, room="group")
    add(qn.ProductOblique, lambda o: {
        "layout": o.layout, "radii": torch.ones(1, dtype=FLOAT),
        "blocks": {"0.weight": torch.zeros(4, 3, dtype=torch.long)}, "rest_radius": 1.0,
        "frozen": o.w > 9}, room="manifold")
    add(qn.ProductOblique.at, lambda o: {"w": o.w, "group": o.group, "rest_radius": 1.0},
        label="manifold.ProductOblique.at")
    add(qn.DenseOperator, lambda o: {"matrix": torch.eye(3, dtype=FLOAT)}, room="objective")


def _add_rest(add) -> None:
    bn = {"p": 2.0, "delta": 1e-3}
    add(symmetry.normalised_blocks, lambda o: {"group": o.symmetry})
    add(verify_translations_complete, lambda o: {
        "model": o.model, "symmetry": o.symmetry, "example_inputs": o.x, "seed": 0,
        "weights": True})
    add(sharpness.bn_sharpness, lambda o: {
        "point": o.point, "group": o.symmetry, **bn, "nodes": 3, "restarts": 1})
    add(sharpness.bn_sharpness_limit, lambda o: {
        "point": o.point, "group": o.symmetry, "p": 2.0})
    add(sharpness.generalisation_bound, lambda o: {
        "bn_sharpness": 1.0, **bn, "divergence": 1.0, "samples": 50, "confidence": 0.05})
    add(sharpness.alternative_normalised_sharpness, lambda o: {
        "point": o.point, "curvature": "hessian", "lambda_": 0.5, "samples": 2,
        "max_iterations": 2})
    add(sharpness.invariance_matrix, lambda o: {
        "measures": ["minimum sharpness"], "trials": o.trials, "elements": 1, "seed": 0})
    add(sharpness.loss_over, lambda o: {
        "point": o.point, "manifold": o.manifold, "first": o.xi, "second": o.xi.flip(0),
        "steps": torch.linspace(-1, 1, 3).double()})
    add(reparametrisation.exceed_eigenvalues, lambda o: {
        "objective": o.objective, "group": o.symmetry, "bound": 10.0, "tolerance": 1e-6})
    add(reparametrisation.PowerTransformation, lambda o: {"centre": o.w, "a": 1.0, "b": 0.25})
    add(reparametrisation.RadialTransformation, lambda o: {
        "centre": o.w, "delta": 2.0, "rho": 0.5, "r_hat": 1.0})
    add(reparametrisation.transformed_hessian, lambda o: {
        "bijection": reparametrisation.PowerTransformation(o.w, 1.0, 0.25),
        "hessian": o.point.hessian, "theta": o.w})
    add(reparametrisation.AffinePreprocessing, lambda o: {
        "shift": torch.ones(3, dtype=FLOAT), "matrix": torch.eye(3, dtype=FLOAT)})
    add(reparametrisation.OnPreprocessed, lambda o: {
        "model": o.model, "preprocessing": reparametrisation.standardise(o.x)})
    add(reparametrisation.share_branches, lambda o: {
        "model": Branches(), "branches": {"a.weight": "b.weight", "a.bias": "b.bias"},
        "share": 0.5, "inputs": o.x})


class Branches(nn.Module):
    """Two equal branches and their sum."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.a = nn.Linear(3, 2).double()
        self.b = copy.deepcopy(self.a)

    def forward(self, x):
        return self.a(x).abs() + self.b(x).abs()


def _add_training(add) -> None:
    def own(o):
        return copy.deepcopy(o.model)

    def bound(o):
        return training.bind(own(o), o.balanced)

    def around(o):
        module = own(o)
        return {"module": module, "base": torch.optim.SGD(module.parameters(), lr=0.1)}

    def one_step(kind):
        """A constructor, and a step if what it was given is taken."""

        def stepped(module, **given):
            optimizer = kind(module, **given)
            optimizer.step(lambda: _closure(module, optimizer))
            return optimizer

        return stepped

    add(training.bind, lambda o: {"module": own(o), "manifold": o.balanced})
    for kind in (training.RiemannianSGD, training.RiemannianAdam):
        adam = kind is training.RiemannianAdam
        more = {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "moments": "blocks"}
        less = {"momentum": 0.5, "dampening": 0.0, "nesterov": False}
        add(kind, lambda o, more=more if adam else less: {
            "params": [bound(o)], "lr": 0.1, "weight_decay": 0.1, **more, "along": "geodesic",
            "check_invariance": True}, room="training")
    add(training.decay, lambda o: {"w": o.w, "manifold": o.manifold})
    add(training.clip_grad_norm_, lambda o: {"parameters": [_with_gradient(o)], "max_norm": 1.0})
    for kind, options in (
        (training.SGDS, {"filters": ["0"], "p": 2, "delta": 1e-3, "regularization": 1e-4,
                         "growth": 1.0, "growth_every": 1, "max_norm": 0.1, "search_steps": 0,
                         "gradient": "full"}),
        (training.SAM, {"rho": 0.05}),
        (training.ASAM, {"rho": 0.5, "eta": 0.01, "biases": True}),
        (training.EntropySGD, {"inner_steps": 2, "inner_lr": 0.1, "gamma": 1e-4, "growth": 1.0,
                               "noise": 1e-4, "averaging": 0.75}),
    ):  # fmt: skip
        add(one_step(kind), lambda o, options=options: {**around(o), **options},
            label=f"training.{kind.__name__}")
    add(training.train, lambda o: {
        **_trained(own(o)), "loss": o.loss, "batches": [o.data], "epochs": 1, "progress": False,
        "on_epoch": None, "scheduler": None})


def _closure(module: nn.Module, optimizer):
    optimizer.zero_grad()
    x = torch.linspace(-1, 1, 12, dtype=FLOAT).reshape(4, 3)
    value = module(x).square().mean()
    value.backward()
    return value


def _with_gradient(o):
    w = nn.Parameter(o.w.clone())
    w.grad = o.xi.clone()
    return w


def _trained(module: nn.Module) -> dict:
    return {"module": module, "optimizer": torch.optim.SGD(module.parameters(), lr=0.1)}


def _add_testing(add) -> None:
    def sgd(module):
        return torch.optim.SGD(module.parameters(), lr=0.0)

    add(testing.conformance, lambda o: {
        "model": o.model, "inputs": o.x, "data": o.data, "loss": o.loss, "symmetry": o.symmetry,
        "manifold": o.manifold, "measures": ["minimum sharpness"], "profile": "quick",
        "seed": 0})
    add(testing.check_group, lambda o: {"manifold": o.manifold, "profile": "quick", "seed": 0})
    add(testing.check_manifold, lambda o: {
        "manifold": qn.LayerScaleQuotient(o.symmetry), "shape": None, "profile": "quick",
        "seed": 0})
    add(testing.check_hessian, lambda o: {
        "manifold": o.manifold, "objective": o.objective, "w": o.w, "seed": 0})
    add(testing.check_derivatives, lambda o: {
        "function": lambda w: (w**2).sum(), "manifold": o.node_wise, "x": o.w, "directions": 1,
        "seed": 0})
    add(testing.check_operator, lambda o: {"operator": o.point.hessian, "seed": 0})
    add(testing.check_invariance, lambda o: {
        "measure": "minimum sharpness", "point": o.point, "group": o.symmetry,
        "moves": "unit scales", "points": 1, "spread": 1.0, "tolerance": 1e-6, "seed": 0})
    add(testing.check_equivariant_training, lambda o: {
        "make_optimizer": sgd, "model": copy.deepcopy(o.model), "group": o.symmetry,
        "batches": [o.data, o.data], "loss": o.loss, "points": 1, "spread": 1.0, "seed": 0,
        "tolerance": 1e-8})
    add(testing.fit_slope, lambda o: {
        "steps": [0.1**k for k in range(8)], "errors": [0.01**k for k in range(8)],
        "wanted": 2.0, "rounding": 0.0})
    add(testing.measure_slope, lambda o: {"error": lambda step: step**2, "wanted": 2.0})
    add(testing.random_architecture, lambda o: {"seed": 0, "least": 5, "most": 6})


def _add_plot(add) -> None:
    steps = torch.linspace(-1, 1, 3).double()
    add(plot.plot_lines, lambda o: {
        "lines": {"a": [sharpness.loss_along(o.point, o.manifold, o.xi, steps)]}, "log": True})
    add(plot.plot_plane, lambda o: {
        "plane": sharpness.loss_over(o.point, o.manifold, o.xi, o.xi.flip(0), steps),
        "title": ""})
    add(plot.plot_density, lambda o: {
        "densities": {"a": curvature.spectral_density(o.point.hessian, samples=2, steps=3)},
        "width": 0.1, "unit": ""})
    add(plot.plot_layers, lambda o: {
        "estimates": {"a": curvature.ggn_traces(o.point)}, "unit": "", "log": True})
    add(plot.plot_changes, lambda o: {"reports": {"a": o.report}})
    add(plot.plot_matrix, lambda o: {"matrix": o.matrix})
    add(plot.plot_against_gap, lambda o: {
        "sharpness": {"a": [1.0, 2.0]}, "gaps": [0.0, 1.0], "labels": ["x", "y"]})
