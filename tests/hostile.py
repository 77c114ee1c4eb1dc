"""Calls of the public functions, and what strangers may give them instead."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from hostile_rest import add_all
from torch import nn

import quotientnet as qn
from quotientnet import curvature, optimization, reparametrisation, sharpness, symmetry
from quotientnet.exponential import minimise_exponentials
from quotientnet.symmetry import verify_translations

FLOAT = torch.float64


class World:
    """Small valid objects of every kind, all of one model."""

    def __init__(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).to(FLOAT)
            self.x = torch.randn(6, 3, dtype=FLOAT)
            self.targets = torch.randint(2, (6,))
            self.xi = torch.randn(26, dtype=FLOAT)
        self.loss = nn.CrossEntropyLoss()
        self.data = (self.x, self.targets)
        self.objective = qn.Objective(self.model, self.loss, self.data)
        self.layout = self.objective.layout
        self.symmetry = qn.discover(self.model, self.x)
        self.group = self.symmetry.group
        self.w = self.layout.flatten(self.model)
        self.point = self.objective.at(self.w)
        better = copy.deepcopy(self.model)
        for _ in range(60):
            slope = self.objective.of(better).at(self.layout.flatten(better)).gradient
            self.layout.assign(better, self.layout.flatten(better) - 0.5 * slope)
        self.trained = self.objective.of(better)
        self.t = torch.linspace(-1, 1, self.group.dimension, dtype=FLOAT)
        self.y = self.group.act(self.w, self.t) + 0.1 * self.xi
        self.manifold = qn.LayerScaleQuotient(self.symmetry)
        self.balanced = qn.BalancedQuotient(self.symmetry)
        self.node_wise = qn.NodeWiseQuotient(self.symmetry)

    @cached_property
    def trials(self):
        """One trial, for matrices."""
        return [sharpness.Trial(
            "Unit scales", "units", "unit scales", self.objective, self.group,
            lambda w, g: self.group.act(w, self.group.random(generator=g)))]  # fmt: skip

    @cached_property
    def report(self):
        """A small report."""
        return sharpness.report(self.point, self.symmetry, points=1, measures=["minimum sharpness"])

    @cached_property
    def matrix(self):
        """A small invariance matrix."""
        return sharpness.invariance_matrix(["minimum sharpness"], self.trials, elements=1)

    def group_blind(self, w):
        """An invariant function: rows of points, values; its maximum is where weights vanish."""
        first, second = w[..., :12], w[..., 16:24]
        return -first.square().sum(-1) * second.square().sum(-1)

    WRITES = ("layout.assign", "group.random")
    """Calls that are there to change the model, or draw from torch's own generator."""

    def state(self) -> dict:
        """All of the user's that a call must leave alone, by name."""
        tensors = self.model.state_dict() | {
            "x": self.x, "targets": self.targets, "xi": self.xi, "w": self.w, "t": self.t,
        }  # fmt: skip
        return {name: tensor.clone() for name, tensor in tensors.items()} | {
            "requires_grad": [p.requires_grad for p in self.model.parameters()],
            "training": self.model.training,
            "random state": torch.random.get_rng_state(),
            "dtype": torch.get_default_dtype(),
            "grad mode": torch.is_grad_enabled(),
        }

    def changes(self, before: dict) -> list[str]:
        """The names of what is no longer as it was."""
        return [
            name
            for name, value in self.state().items()
            if not (
                torch.equal(value, before[name])
                if isinstance(value, torch.Tensor)
                else value == before[name]
            )
        ]

    def restore(self, before: dict) -> None:
        """Put back what a call that writes has written."""
        self.model.load_state_dict({k: before[k] for k in self.model.state_dict()})
        torch.random.set_rng_state(before["random state"])


@dataclass(frozen=True)
class Call:
    """A function with arguments that are right.

    Attributes:
        function: What is called.
        arguments: By the parameters' names, from a world.
        room: Of what part of the package.
    """

    function: Callable
    arguments: Callable[[World], dict]
    room: str


def calls() -> dict[str, Call]:
    """Every call by a label."""
    found = {}

    def add(function, arguments, label=None, room=None):
        label = label or function.__name__
        room = room or (label.split(".")[0] if "." in label else _room_of(function))
        found[label] = Call(function, arguments, ROOMS.get(room, room))

    add(qn.discover, lambda o: {"model": o.model, "example_inputs": o.x, "layout": o.layout})
    add(qn.verify_sound, lambda o: {
        "model": o.model, "group": o.symmetry, "example_inputs": o.x, "second_inputs": o.x,
        "samples": 1, "decades": 1.0, "tolerance": 1e-9, "seed": 0, "modes": ["own"]})
    add(qn.verify_complete, lambda o: {
        "model": o.model, "group": o.symmetry, "example_inputs": o.x, "seed": 0, "max_rows": 500})
    add(qn.layer_scale_group, lambda o: {"group": o.group})
    add(qn.transform, lambda o: {
        "model": o.model, "group": o.symmetry, "t": o.t, "inputs": o.x, "tolerance": 1e-6})
    add(qn.canonical, lambda o: {"w": o.w, "group": o.symmetry})
    add(qn.balance, lambda o: {
        "model": o.model, "group": o.symmetry, "levels": torch.zeros_like(o.t), "norm": 2,
        "runaways": "raise", "inputs": o.x, "tolerance": 1e-6})
    add(symmetry.balancing, lambda o: {
        "w": o.w, "group": o.group, "levels": torch.zeros_like(o.t), "norm": 2, "runaways": "raise",
        "start": torch.zeros_like(o.t)})
    add(symmetry.default_levels, lambda o: {"group": o.group})
    add(qn.scale_mappings, lambda o: {"symmetry": o.symmetry})
    add(qn.permutation_classes, lambda o: {
        "model": o.model, "example_inputs": o.x, "layout": o.layout, "samples": 1,
        "tolerance": 1e-9})
    add(symmetry.discover_numerically, lambda o: {
        "model": o.model, "example_inputs": o.x, "seed": 0, "max_rows": 500})
    add(symmetry.channel_sizes, lambda o: {
        "model": o.model, "symmetry": o.symmetry, "batches": [o.x]})
    add(symmetry.smoothing, lambda o: {
        "sizes": symmetry.channel_sizes(o.model, o.symmetry, [o.x]), "alpha": 0.5})
    add(symmetry.match_channels, lambda o: {
        "w": o.w, "reference": o.w, "classes": qn.permutation_classes(o.model, o.x), "sweeps": 1})
    add(symmetry.fix_translations, lambda o: {"w": o.w, "symmetry": o.symmetry})
    add(verify_translations, lambda o: {
        "model": o.model, "symmetry": o.symmetry, "example_inputs": o.x, "samples": 1,
        "tolerance": 1e-9, "seed": 0})
    for kind in (qn.LayerScaleQuotient, qn.NodeWiseQuotient, qn.LogPolarQuotient):
        add(kind, lambda o: {"group": o.group, "frozen_zeros": o.w})
    add(qn.BalancedQuotient, lambda o: {
        "group": o.group, "levels": torch.zeros_like(o.t),
        "exclude": o.w})
    add(qn.without_translations, lambda o: {"manifold": o.manifold, "symmetry": o.symmetry})
    add(qn.Objective, lambda o: {
        "model": o.model, "loss": o.loss, "data": o.data, "layout": o.layout, "products": "auto",
        "memory": 10**9})
    _add_methods(add)
    _add_curvature(add)
    _add_optimization(add)
    _add_sharpness(add)
    _add_reparametrisation(add)
    add_all(add)
    return found


ROOMS = {
    "layout": "layouts and groups", "group": "layouts and groups", "exponential":
    "layouts and groups", "manifold": "manifolds", "balanced": "manifolds", "node_wise":
    "manifolds", "objective": "objective", "operator": "objective", "plot": "pictures",
    "testing": "kit for tests",
}  # fmt: skip
"""What a table calls them, where not by the package's own name."""


def _room_of(function) -> str:
    return function.__module__.removeprefix("quotientnet.").split(".")[0]


def _add_methods(add) -> None:
    """Methods of groups, layouts, manifolds, objectives and points; the object is theirs."""

    def method(kind: str, name: str, arguments):
        def bound(**given):
            return getattr(getattr(given.pop("self_"), kind), name)(**given)

        add(bound, lambda o: {"self_": o, **arguments(o)}, label=f"{kind}.{name}")

    method("group", "act", lambda o: {"w": o.w, "t": o.t})
    method("group", "generate", lambda o: {"w": o.w, "t": o.t})
    method("group", "exponents", lambda o: {"t": o.t})
    method("group", "adjoint", lambda o: {"rho": o.xi})
    method("group", "random", lambda o: {"spread": 1.0})
    method("layout", "flatten", lambda o: {"tensors": o.model})
    method("layout", "unflatten", lambda o: {"w": o.w})
    method("layout", "assign", lambda o: {"module": o.model, "w": o.w})
    method("objective", "at", lambda o: {"w": o.w})
    method("objective", "__call__", lambda o: {"w": o.w})
    method("objective", "value_and_gradient", lambda o: {"w": o.w})
    for kind in ("manifold", "balanced", "node_wise"):
        for name in ("inner", "proju", "egrad2rgrad", "retr", "expmap", "vertical"):
            if kind == "balanced" and name == "expmap":
                continue
            second = "v" if name == "inner" else "u"
            method(kind, name, lambda o, second=second: {"x": o.w, "u": o.xi, second: o.xi})
        method(kind, "transp", lambda o: {"x": o.w, "y": o.w * 1.1, "v": o.xi})
        method(kind, "riemannian_hessian", lambda o: {
            "point": o.point, "connection": "levi-civita"})
    for name in ("logmap", "dist"):
        method("manifold", name, lambda o: {"x": o.w, "y": o.y})


def _add_curvature(add) -> None:
    for function in (curvature.lanczos, curvature.power_method):
        add(function, lambda o: {
            "operator": o.point.hessian, "which": "magnitude", "tolerance": 1e-2, "start": o.xi})
    add(curvature.spectral_density, lambda o: {
        "operator": o.point.hessian, "samples": 2, "steps": 3, "block": 1})
    for function in (curvature.ggn_traces, curvature.ggn_diagonal, curvature.ggn_cost,
                     curvature.squared_gradients):  # fmt: skip
        add(function, lambda o: {"point": o.point, "chunk": 2})
    add(curvature.ggn_traces_estimate, lambda o: {"point": o.point, "draws": 2})
    for function in (curvature.hessian_traces, curvature.hessian_diagonal):
        add(function, lambda o: {"point": o.point, "limit": 100})
    add(curvature.finite_difference_diagonal, lambda o: {
        "point": o.point, "samples": 2, "relative_step": 1e-4})
    add(curvature.sample_slopes, lambda o: {"point": o.point, "direction": o.xi})
    for function in (curvature.hutchinson_trace, curvature.hutch_plus_plus_trace):
        add(function, lambda o: {
            "operator": o.point.hessian, "samples": 6, "tolerance": None, "block": 1})
    add(curvature.hutchinson_diagonal, lambda o: {
        "operator": o.point.hessian, "samples": 2, "block": 1})


def _add_optimization(add) -> None:
    for function in (optimization.maximize, optimization.minimize):
        add(function, lambda o: {
            "function": o.group_blind, "manifold": o.manifold,
            "start": o.w, "method": "gradient", "tolerance": 1e-3, "max_iterations": 2})
    add(optimization.frechet_mean, lambda o: {
        "manifold": o.manifold, "points": torch.stack([o.w, o.y]),
        "weights": torch.ones(2).double(), "tolerance": 1e-6, "max_iterations": 2})
    add(minimise_exponentials, lambda o: {
        "group": o.group, "coefficients": o.w.square(), "linear": torch.zeros_like(o.t),
        "factor": 2.0, "max_iterations": 50})


def _add_sharpness(add) -> None:
    quick = {"restarts": 1}
    add(sharpness.spectral_norm, lambda o: {"point": o.point, "which": "magnitude"})
    add(sharpness.trace, lambda o: {"point": o.point, "samples": 2, "block": 1})
    add(sharpness.second_order_sharpness, lambda o: {"point": o.point, "epsilon": 1e-2})
    for function in (sharpness.ball_sharpness, sharpness.box_sharpness):
        add(function, lambda o: {
            "point": o.point, "epsilon": 1e-2, "max_iterations": 3, **quick})
    add(sharpness.adaptive_sharpness, lambda o: {
        "point": o.point, "rho": 1e-2, "eta": 0.0, **quick})
    add(sharpness.volume_flatness, lambda o: {
        "point": o.point, "group": o.symmetry, "epsilon": 0.5, "boxes": 1, "tolerance": 0.5,
        "max_iterations": 3, **quick})
    add(sharpness.riemannian_spectral_norm, lambda o: {
        "point": o.point, "manifold": o.manifold, "which": "algebraic"})
    add(sharpness.riemannian_trace, lambda o: {
        "point": o.point, "manifold": o.manifold, "method": "exact", "samples": 2})
    add(sharpness.riemannian_sharpness, lambda o: {
        "point": o.point, "manifold": o.manifold, "epsilon": 1e-2, **quick})
    add(sharpness.average_riemannian_sharpness, lambda o: {
        "point": o.point, "manifold": o.manifold, "epsilon": 1e-2, "samples": 2})
    add(sharpness.integral_diameter, lambda o: {
        "point": o.point, "p": 2.0, "delta": 1e-3, "nodes": 3})
    for function in (sharpness.matrix_normalised_sharpness, sharpness.normalised_sharpness):
        add(function, lambda o: {"point": o.point, "curvature": "hessian"})
    add(sharpness.pac_bayes_terms, lambda o: {"point": o.point, "samples": 6, "delta": 0.05})
    add(sharpness.minimum_sharpness, lambda o: {
        "point": o.point, "group": o.symmetry, "curvature": "gauss-newton"})
    for function in (sharpness.fisher_rao_norm, sharpness.diagonal_fisher_rao_norm):
        add(function, lambda o: {"point": o.point})
    add(sharpness.relative_flatness, lambda o: {"point": o.point, "layer": None, "limit": 100})
    add(sharpness.report, lambda o: {
        "point": o.point, "group": o.symmetry, "points": 2, "spread": 1.0, "seed": 0,
        "measures": ["minimum sharpness"]})
    add(sharpness.layer_normalised_direction, lambda o: {"w": o.w, "manifold": o.manifold})
    add(sharpness.loss_along, lambda o: {
        "point": o.point, "manifold": o.manifold, "direction": o.xi,
        "steps": torch.linspace(-1, 1, 3).double()})
    add(sharpness.ball_bound, lambda o: {
        "bn_sharpness": 1.0, "largest_change": 1.0, "p": 2.0, "delta": 1e-3})
    add(sharpness.power_bound, lambda o: {"lower": 1.0, "upper": 2.0, "p": 2.0, "q": 4.0})
    add(sharpness.trace_bound, lambda o: {
        "bn_sharpness": 1.0, "trace": 1.0, "direction_norm": 1.0, "p": 2.0, "delta": 1e-3})
    add(sharpness.gaussian_divergence, lambda o: {
        "squares": 1.0, "entries": 4, "posterior": 1.0, "prior": 1.0})


def _add_reparametrisation(add) -> None:
    add(reparametrisation.layer_scales, lambda o: {"group": o.symmetry, "scales": [2.0, 0.5]})
    add(reparametrisation.unit_scales, lambda o: {"group": o.symmetry, "scales": {0: 2.0}})
    add(reparametrisation.exceed_spectral_norm, lambda o: {
        "objective": o.objective, "group": o.symmetry, "bound": 10.0})
    add(reparametrisation.exceed_sharpness, lambda o: {
        "objective": o.trained, "group": o.symmetry, "radius": 0.5})
    add(reparametrisation.disjoint_boxes, lambda o: {
        "w": o.w, "group": o.symmetry, "radius": 1e-3})
    for function in (reparametrisation.standardise, reparametrisation.whiten):
        add(function, lambda o: {"x": o.x})
