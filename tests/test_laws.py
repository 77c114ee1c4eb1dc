"""Every law on every case, and each law shown to fail on a manifold broken on purpose."""

import chains
import pytest
import torch
from cases import CASES, NETWORKS
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import quotientnet as qn
from quotientnet.testing import (
    GROUP_LAWS,
    HESSIAN_LAWS,
    MANIFOLD_LAWS,
    Sample,
    strategies,
)
from quotientnet.testing.hessian_laws import HessianSample
from quotientnet.testing.manifold_laws import supports

DTYPES = [torch.float64, torch.float32]
built = {}


def manifold(case):
    if case not in built:
        built[case] = CASES[case].build()
    return built[case]


def check_law(law, case, dtype, **draw):
    subject = manifold(case)
    if dtype not in law.tolerances:
        pytest.skip("stated in float64 only")
    if not supports(subject, law.requires):
        pytest.skip(f"{case} has no {' or '.join(law.requires)}")
    law.check(Sample(subject, dtype=dtype, **draw)).require()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "law", {**GROUP_LAWS, **MANIFOLD_LAWS}.values(), ids=lambda law: law.name
)
def test_law(law, case, dtype):
    check_law(law, case, dtype)


@pytest.mark.parametrize(
    "law", {**GROUP_LAWS, **MANIFOLD_LAWS}.values(), ids=lambda law: law.name
)
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(sample=strategies.samples())
def test_law_on_drawn_manifolds(law, sample):
    assume(supports(sample.manifold, law.requires))
    if law.name == "projection_has_rank_dimension":
        sample = Sample(sample.manifold, sample.seed)
    law.check(sample).require()


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(model=strategies.chains(), seed=st.integers(0, 2**20))
def test_drawn_chains_are_unchanged_by_their_groups(model, seed):
    layout = qn.ParameterLayout.from_module(model)
    convolutional = isinstance(model[0], torch.nn.Conv2d)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(
        6, *((2, 6, 6) if convolutional else (3,)), generator=generator
    ).double()
    w = layout.flatten(model)
    for group in (chains.layer_scale_group(layout), chains.node_wise_group(layout)):
        moved = group.act(w, group.random(spread=2.0, generator=generator))
        for mode in (True, False):
            model.train(mode)
            here, there = (
                torch.func.functional_call(
                    model, {k: t.clone() for k, t in layout.unflatten(v).items()}, x
                )
                for v in (w, moved)
            )
            assert (here - there).norm() <= 1e-9 * here.norm()


@pytest.mark.parametrize(
    "case", ["layer-scale-mlp", "node-wise-mlp", "filters-conv", "balanced-conv"]
)
@pytest.mark.parametrize("law", MANIFOLD_LAWS.values(), ids=lambda law: law.name)
def test_law_on_batches(law, case):
    if law.name == "projection_has_rank_dimension":
        pytest.skip("stated for one point")
    check_law(law, case, torch.float64, batch=(2, 3), seed=5)


@pytest.mark.parametrize("law", HESSIAN_LAWS.values(), ids=lambda law: law.name)
@pytest.mark.parametrize("case", [c for c in CASES if CASES[c].network != "one-layer"])
def test_hessian_law(law, case):
    subject = manifold(case)
    if not supports(subject, law.requires):
        pytest.skip(f"{case} has no {' or '.join(law.requires)}")
    objective = NETWORKS[CASES[case].network].objective()
    w = subject.projx(
        torch.where(
            subject._held_at_zero, 0.0, objective.layout.flatten(objective.model)
        )
    )
    law.check(HessianSample(subject, objective, w)).require()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_laws_on_gpu(case):
    subject = CASES[case].build().to("cuda")
    for law in MANIFOLD_LAWS.values():
        if supports(subject, law.requires):
            law.check(Sample(subject, device="cuda")).require()


@pytest.mark.parametrize(
    "case",
    [
        c
        for c in CASES
        if not c.startswith(("frame-only", "node-wise-one-layer", "balanced"))
    ],
)
def test_the_levi_civita_hessian_annihilates_orbits_without_projection(case):
    if CASES[case].network == "one-layer":
        pytest.skip("its group is trivial")
    objective = NETWORKS[CASES[case].network].objective()
    subject, w = manifold(case), objective.layout.flatten(objective.model)
    point = objective.at(subject.projx(torch.where(subject._held_at_zero, 0.0, w)))
    w = point.w
    velocity = subject._keep(
        subject.group.generate(w, torch.ones(subject.group.dimension))
    )
    flat = point.hessian @ velocity
    exact = subject._keep(flat + subject.connection_term(w, point.gradient, velocity))
    assert (exact / subject.frame(w)).norm() < 1e-10 * (flat / subject.frame(w)).norm()
    assert flat.norm() > 1e-3 * point.gradient.norm()


# -- broken on purpose ---

Base = qn.LogPolarQuotient


def broken(**methods):
    return type("Broken", (Base,), methods)(
        chains.node_wise_group(NETWORKS["mlp"].layout())
    )


def plain(name):
    return getattr(Base, name)


def unaligned_transport(m, x, y, v):
    return v * (y.norm(dim=-1, keepdim=True) / x.norm(dim=-1, keepdim=True))


def acos_distance(m, x, y, keepdim=False):
    cosine = m.blocks.dot(x, y) / (m.blocks.dot(x, x) * m.blocks.dot(y, y)).sqrt()
    return torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6)).square().sum(-1).sqrt()


BROKEN = {
    "metric_is_the_frame": {
        "inner": lambda m, x, u, v=None, keepdim=False: 1.01
        * plain("inner")(m, x, u, v)
    },
    "components_add_up": {
        "component_inner": lambda m, x, u, v=None: u * (u if v is None else v)
    },
    "gradient_represents_the_differential": {
        "egrad2rgrad": lambda m, x, u: m.proju(x, u / m.frame(x)),
    },
    "gradient_is_horizontal": {"egrad2rgrad": lambda m, x, u: u / m.frame(x) ** 2},
    "projection_is_idempotent": {
        "proju": lambda m, x, u, out=None: 2 * plain("proju")(m, x, u) - u / 2
    },
    "projection_is_self_adjoint": {
        "proju": lambda m, x, u, out=None: u
        - m.group.generate(x, m.group.gram().solve(m.group.adjoint(u))),
    },
    "projection_annihilates_orbits": {"proju": lambda m, x, u, out=None: u},
    "vertical_and_horizontal_add_up": {
        "vertical": lambda m, x, u: 0.9 * plain("vertical")(m, x, u)
    },
    "projection_has_rank_dimension": {"dimension": property(lambda m: m.layout.size)},
    "metric_is_equivariant": {
        "frame": lambda m, x: torch.ones_like(x),
        "inner": lambda m, x, u, v=None, keepdim=False: (
            u * (u if v is None else v)
        ).sum(-1, keepdim=keepdim),
    },
    "projection_is_equivariant": {
        "proju": lambda m, x, u, out=None: plain("proju")(m, x, u) * x.abs().mean()
    },
    "gradient_is_equivariant": {"egrad2rgrad": lambda m, x, u: m.proju(x, u)},
    "retraction_is_equivariant": {"retr": lambda m, x, u: x + u / (1 + u.norm())},
    "exponential_is_equivariant": {
        "expmap": lambda m, x, u: plain("expmap")(m, x, u) + 1e-3
    },
    "distance_is_equivariant": {
        "dist": lambda m, x, y, keepdim=False: (x - y).norm(dim=-1)
    },
    "transport_is_equivariant": {"transp": unaligned_transport},
    "metric_is_bilinear": {
        "inner": lambda m, x, u, v=None, keepdim=False: plain("inner")(
            m, x, u, v, keepdim=keepdim
        )
        * (1 + 1e-3 * (u * m.frame(x)).sum(-1, keepdim=keepdim).tanh())
    },
    "arguments_are_left_alone": {
        "egrad2rgrad": lambda m, x, u: plain("egrad2rgrad")(m, x, u.mul_(2) / 2)
    },
    "metric_has_the_shape_of_the_batch": {
        "inner": lambda m, x, u, v=None, keepdim=False: plain("inner")(m, x, u, v)
    },
    "out_is_the_result": {
        "proju": lambda m, x, u, *, out=None: plain("proju")(m, x, u)
    },
    "transport_starts_at_the_identity": {
        "transp": lambda m, x, y, v: -plain("transp")(m, x, y, v)
    },
    "geodesics_have_critical_energy": {"expmap": lambda m, x, u: x + u},
    "logarithm_inverts_exponential": {"expmap": lambda m, x, u: plain("retr")(m, x, u)},
    "logarithm_is_horizontal": {"logmap": lambda m, x, y: y - x},
    "exponential_of_logarithm_is_on_the_orbit": {
        "logmap": lambda m, x, y: 0.9 * plain("logmap")(m, x, y)
    },
    "distance_is_length_of_logarithm": {
        "dist": lambda m, x, y, keepdim=False: m.dist2(x, y)
    },
    "distance_is_zero_on_the_orbit": {"dist": acos_distance},
    "distance_is_length_off_the_orbit": {"dist": acos_distance},
    "distance_obeys_the_triangle_inequality": {
        "dist": lambda m, x, y, keepdim=False: m.dist2(x, y)
    },
    "moves_end_on_the_manifold": {"transp": lambda m, x, y, v: v},
    "geodesics_stay_horizontal": {"transp_follow_expmap": lambda m, x, u, v: v},
    "velocity_is_the_derivative_of_the_exponential": {
        "transp_follow_expmap": lambda m, x, u, v: m.proju(m.expmap(x, u), v),
    },
    "geodesics_obey_the_levi_civita_connection": {"expmap": lambda m, x, u: x + u},
    "transport_obeys_the_levi_civita_connection": {
        "transp_follow_expmap": lambda m, x, u, v: v
    },
    "connection_is_the_frames": {
        "connection_term": lambda m, x, g, u: torch.zeros_like(u) + 1e-3 * g
    },
    "transport_is_an_isometry_along_geodesics": {
        "transp": lambda m, x, y, v: m.proju(y, v),
    },
    "transports_along_one_geodesic_agree": {
        "transp": lambda m, x, y, v: -plain("transp")(m, x, y, v)
    },
    "transport_to_the_point_itself_is_the_identity": {
        "transp": lambda m, x, y, v: 0 * v
    },
    "retraction_starts_with_its_vector": {"retr": lambda m, x, u: x},
    "retraction_is_first_order": {"retr": lambda m, x, u: x + 1.01 * u},
    "batch_is_loop": {
        "component_inner": lambda m, x, u, v=None: plain("component_inner")(m, x, u, v)
        / x.ndim
    },
    "projection_to_the_manifold_moves_no_point": {"projx": lambda m, x: x / x.norm()},
    "derivatives_are_finite_at_zero": {
        "norm": lambda m, x, u, keepdim=False: m.inner(x, u).sqrt()
    },
    "copies_are_equal": {
        "__deepcopy__": lambda m, memo: qn.LogPolarQuotient(
            chains.layer_scale_group(m.layout)
        )
    },
}


def test_every_manifold_law_has_a_broken_manifold():
    assert set(BROKEN) == set(MANIFOLD_LAWS)


@pytest.mark.parametrize("name", BROKEN)
def test_law_catches_a_broken_manifold(name, monkeypatch):
    subject = broken(**BROKEN[name])
    monkeypatch.setattr("pickle.dumps", lambda m: m)
    monkeypatch.setattr("pickle.loads", lambda m: m)
    law = MANIFOLD_LAWS[name]
    intact = law.check(Sample(broken()))
    assert intact.holds
    length = {
        "distance_is_length_off_the_orbit": 1e-3,
        "distance_is_length_of_logarithm": 2.0,
    }.get(name, 1.0)
    verdict = law.check(Sample(subject, length=length))
    assert not verdict.holds
    with pytest.raises(AssertionError, match=name):
        verdict.require()


def test_a_law_does_not_pass_over_nan():
    def inner(m, x, u, v=None, keepdim=False):
        value = plain("inner")(m, x, u, v, keepdim=keepdim)
        return value * torch.nan if x.ndim > 1 and v is not None else value

    assert not MANIFOLD_LAWS["batch_is_loop"].check(Sample(broken(inner=inner))).holds


class Fixed:
    """A Gram matrix that answers with its right-hand side."""

    def solve(self, b):
        return b


BROKEN_GROUPS = {
    "identity_moves_nothing": {
        "identity": lambda g, *b, **o: torch.full((*b, g.dimension), 1e-9).double()
    },
    "composition_is_successive_action": {"compose": lambda g, s, t: s - t},
    "inverse_undoes": {"inverse": lambda g, t: t},
    "generator_is_velocity_of_action": {"generate": lambda g, w, t: g.exponents(t)},
    "adjoint_is_the_transpose": {
        "adjoint": lambda g, r: 1.001 * qn.ScalingGroup.adjoint(g, r)
    },
    "elements_in_batches_act_alone": {
        "exponents": lambda g, t, out=None: qn.ScalingGroup.exponents(g, t) * t.ndim
    },
    "gram_solve_recovers_exponents": {"gram": lambda g, weight=None: Fixed()},
    "canonical_points_are_one_an_orbit": {
        "act": lambda g, w, t: qn.ScalingGroup.act(g, w, t) + 1e-6
    },
    "canonical_points_are_their_own": {
        "act": lambda g, w, t: qn.ScalingGroup.act(g, w, 0.99 * t)
    },
}


@pytest.mark.parametrize("name", GROUP_LAWS)
def test_law_catches_a_broken_group(name):
    subject = broken()
    assert GROUP_LAWS[name].check(Sample(subject)).holds
    group, methods = subject.group, dict(BROKEN_GROUPS[name])
    methods["without"] = lambda g, generators: g  # a subgroup would not be broken
    subject.group = type("BrokenGroup", (qn.ScalingGroup,), methods)(
        group.layout, group.incidence, group.classes, group.names
    )
    assert not GROUP_LAWS[name].check(Sample(subject)).holds


class Distorted(qn.Operator):
    """``change(H v, v)`` in place of ``H v``."""

    def __init__(self, operator, change):
        super().__init__(operator.size, operator.dtype, operator.device)
        self.operator, self.change = operator, change

    def _matvec(self, v):
        return self.change(self.operator @ v, v)


def distorted(change):
    return lambda m, point, connection="levi-civita": Distorted(
        Base.riemannian_hessian(m, point, connection),
        lambda hv, v: change(hv, v, point),
    )


def penalised(objective):
    """The loss and a penalty on the weights, which its group moves."""
    model, loss = objective.model, objective.loss

    def both(outputs, targets):
        decay = sum((p**2).sum() for p in model.parameters())
        return loss(outputs, targets) + 1e-3 * decay

    return qn.Objective(model, both, objective.data[0])


def test_law_catches_a_loss_that_is_not_invariant():
    o = NETWORKS["mlp"].objective()
    w, law = o.layout.flatten(o.model), HESSIAN_LAWS["loss_is_invariant"]
    assert law.check(HessianSample(broken(), o, w)).holds
    changed = penalised(o)
    assert not law.check(HessianSample(broken(), changed, w)).holds


def test_the_hessian_refuses_a_loss_that_is_not_invariant():
    o = NETWORKS["mlp"].objective()
    w = o.layout.flatten(o.model)
    changed = penalised(o)
    with pytest.raises(
        ValueError, match="not invariant under the group: along generator 'unit"
    ):
        broken().riemannian_hessian(changed.at(w))
    network = NETWORKS["batch-norm"]
    objective = network.objective(train=False)
    w = objective.layout.flatten(objective.model)
    manifold = qn.LayerScaleQuotient(chains.layer_scale_group(objective.layout))
    with pytest.raises(ValueError, match="In eval mode running statistics"):
        manifold.riemannian_hessian(objective.at(w))


BROKEN_HESSIANS = {
    "hessian_is_symmetric": distorted(lambda hv, v, p: hv + v.roll(1)),
    "hessian_annihilates_orbits": distorted(lambda hv, v, p: hv + p.hessian @ v),
    "hessian_is_second_derivative_along_geodesics": lambda m, point, connection="": (
        Base.riemannian_hessian(m, point, "flat")
    ),
    "hessian_is_equivariant": distorted(lambda hv, v, p: hv * p.w.norm()),
}


@pytest.mark.parametrize("name", BROKEN_HESSIANS)
def test_law_catches_a_broken_hessian(name):
    objective = NETWORKS["mlp"].objective()
    w, law = objective.layout.flatten(objective.model), HESSIAN_LAWS[name]
    assert law.check(HessianSample(broken(), objective, w)).holds
    subject = broken(riemannian_hessian=BROKEN_HESSIANS[name])
    assert not law.check(HessianSample(subject, objective, w)).holds
