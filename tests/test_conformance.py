"""The kit as a stranger uses it: verdicts, profiles, measures, geoopt's manifolds, test cases."""

import json
import math
from functools import cache
from pathlib import Path

import geoopt
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import quotientnet as qn
from quotientnet.testing import (
    MANIFOLD_LAWS,
    PROFILES,
    REGIMES,
    RIEMANNIAN_LAWS,
    Law,
    Sample,
    Slope,
    Unrolled,
    Verdict,
    check_invariance,
    check_manifold,
    conformance,
    retraction_slope,
    strategies,
)
from quotientnet.testing.laws import worst_verdict
from quotientnet.testing.profiles import regime_options

DOUBLE = {"dtype": torch.float64}


def mlp(seed=0, activation=nn.ReLU):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 3)).double()


X = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).double()
DATA = X, torch.arange(12) % 3


@cache
def symmetry():
    return qn.discover(mlp(), X)


@cache
def node_wise():
    return qn.NodeWiseQuotient(symmetry())


# -- verdicts ---


def test_a_verdict_is_a_value_that_can_be_replayed(capsys):
    verdicts = check_manifold(geoopt.Sphere(), shape=(4,), profile="quick", seed=3)
    assert capsys.readouterr().out == ""
    bad = next(v for v in verdicts if not v.holds)
    again = RIEMANNIAN_LAWS[bad.law].check(bad.sample)
    assert again.violation == bad.violation and again.seed == bad.seed == 3
    text = str(bad)
    assert bad.law in text and "seed 3" in text and "points (4,)" in text
    with pytest.raises(AssertionError, match=f"{bad.law}: violated by .*seed 3"):
        bad.require()


def test_an_exception_is_a_violation_and_what_is_missing_is_none():
    def raising(error):
        def measure(sample):
            raise error

        return Law("law", "", measure, {torch.float64: 1.0})

    sample = Sample(node_wise())
    verdict = raising(KeyError("no such thing")).check(sample)
    assert verdict.violation == math.inf and "KeyError: 'no such thing'" in str(verdict)
    with pytest.raises(NotImplementedError):
        raising(NotImplementedError()).check(sample)


def test_the_worst_of_several():
    def verdict(violation, tolerance=1e-3):
        return Verdict("law", violation, tolerance, 0)

    assert worst_verdict([verdict(1e-4), verdict(2e-4), verdict(0)]).violation == 2e-4
    assert math.isnan(worst_verdict([verdict(1.0), verdict(math.nan)]).violation)
    assert worst_verdict([verdict(1e-2), verdict(1e-4, 1e-6)]).violation == 1e-4
    assert worst_verdict([verdict(0, 0), verdict(0.1, 0)]).violation == 0.1
    assert worst_verdict([verdict(0), verdict(0)]).tried == 2


def test_a_law_on_an_order_keeps_the_slope():
    verdict = MANIFOLD_LAWS["retraction_is_first_order"].check(Sample(node_wise()))
    assert isinstance(verdict.slope, Slope) and verdict.holds
    assert verdict.slope.order == pytest.approx(2, abs=0.05)
    sphere = Sample(Unrolled(geoopt.Sphere(), (5,)))
    assert retraction_slope(sphere).order == pytest.approx(3, abs=0.05)


# -- profiles and regimes ---


def test_profiles_cover_what_they_say():
    manifold = qn.LayerScaleQuotient(symmetry())
    samples = PROFILES["ci"].samples(manifold)
    assert {s.dtype for s in samples} == {torch.float64, torch.float32}
    assert {s.batch for s in samples} == {(), (2,)}
    assert len(samples) == 2 * len(REGIMES)
    assert len(PROFILES["thorough"].samples(manifold)) == 8 * len(samples)
    assert len(PROFILES["quick"].samples(manifold)) == 1
    flat = PROFILES["ci"].samples(Unrolled(geoopt.Euclidean(ndim=1), (3,)))
    assert len(flat) == 2 * (len(REGIMES) - 2)
    with pytest.raises(ValueError, match="profile must be one of 'quick', 'ci', 'thor"):
        check_manifold(node_wise(), profile="slow")
    with pytest.raises(TypeError, match="check_manifold: spread and a profile"):
        check_manifold(node_wise(), profile="ci", spread=1.0)


def test_the_scaled_regime_is_twelve_orders_of_magnitude():
    manifold = node_wise()
    (options,) = regime_options(manifold, ("scaled",), torch.float64)
    sample = Sample(manifold, batch=(20,), **options)
    scales = manifold.group.exponents(sample.element(2)).exp()
    assert scales.max() / scales.min() > 1e12


@pytest.mark.parametrize("dtype, gap", [(torch.float64, 1e-4), (torch.float32, 3e-2)])
@pytest.mark.parametrize("kind", ["sphere", "oblique", "log-polar"])
def test_antipodal_samples_are_nearly_antipodal(kind, dtype, gap):
    layout = qn.ParameterLayout({"rows": (2, 4), "rest": (3,)})
    manifold = {
        "sphere": lambda: Unrolled(geoopt.Sphere(), (5,)),
        "oblique": lambda: qn.ProductOblique(
            layout, torch.tensor([2.0, 0.5]), {"rows": [[0], [1]]}
        ),
        "log-polar": lambda: qn.LayerScaleQuotient(symmetry()),
    }[kind]()
    (options,) = regime_options(manifold, ("antipodal",), dtype)
    s = Sample(manifold, batch=(3,), dtype=dtype, **options)
    y = manifold.expmap(s.x, s.tangent(4))
    moved = (y - s.x).abs() > 0.1 * s.x.abs()
    for x, end, where in zip(s.x, y, moved):
        block = torch.where(where, x, 0), torch.where(where, end, 0)
        # the block that turns: its end is nearly the negative of its start
        assert (block[0] + block[1]).norm() < 2 * gap * block[0].norm()


@given(pair=strategies.pairs(node_wise(), regime="coincident"))
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
def test_coincident_pairs_are_near_on_the_quotient(pair):
    x, y = pair
    assert x.shape == y.shape and not torch.equal(x, y)
    assert (node_wise().dist(x, y) < 2e-7).all()


@given(x=strategies.points(node_wise()), dtype=strategies.dtypes())
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
def test_points_are_points(x, dtype):
    assert node_wise().check_point_on_manifold(x)
    assert torch.empty(0, dtype=dtype).is_floating_point()


def test_hypothesis_profiles_are_registered():
    for profile in PROFILES.values():
        found = settings.get_profile(f"quotientnet-{profile.name}")
        assert found.max_examples == profile.examples and found.deadline is None


# -- geoopt's manifolds ---


def failing(manifold, shape, **options):
    return {
        v.law for v in check_manifold(manifold, shape=shape, **options) if not v.holds
    }


def test_geoopt_manifolds_on_which_everything_holds():
    assert failing(geoopt.Euclidean(ndim=1), (4,)) == set()
    assert failing(geoopt.EuclideanStiefelExact(), (5, 3)) == set()


def test_what_fails_on_geoopt_is_in_the_documents():
    """What a quick look finds is in the table, which was made with more samples."""
    results = Path(__file__).parents[1] / "docs/results/geoopt_manifolds.json"
    rows = {r["manifold"]: r for r in json.loads(results.read_text())["rows"]}
    for manifold in (geoopt.Sphere(), geoopt.Lorentz(), geoopt.PoincareBall()):
        row = rows[type(manifold).__name__]
        known = {f["law"] for f in row["failed"]}
        found = failing(manifold, tuple(row["shape"]))
        assert found and found <= known


def test_nothing_of_the_users_manifold_or_dice_changes():
    manifold = geoopt.PoincareBall()
    before, dtype = torch.random.get_rng_state(), manifold.c.dtype
    check_manifold(manifold, shape=(3,))
    assert torch.equal(before, torch.random.get_rng_state())
    assert manifold.c.dtype == dtype


def test_bad_subjects_are_refused():
    with pytest.raises(ValueError, match="Sphere has no layout; pass the shape"):
        check_manifold(geoopt.Sphere())
    with pytest.raises(TypeError, match="must be a geoopt.Manifold, got list"):
        check_manifold([1, 2])
    with pytest.raises(ValueError, match="do not have shape"):
        check_manifold(geoopt.Stiefel(), shape=(3, 5))
    with pytest.raises(TypeError, match="shape must be an integer"):
        check_manifold(geoopt.Sphere(), shape=(2.5,))


# -- broken manifolds of users, caught by name ---


class Pointless(geoopt.Sphere):
    """Everything but points to try."""

    random = geoopt.Manifold.random


def test_a_manifold_without_points_passes_no_law():
    verdicts = check_manifold(Pointless(), shape=(5,))
    assert len(verdicts) > 10 and not any(verdict.holds for verdict in verdicts)
    assert all("define random(*size, dtype, device)" in verdict.reason for verdict in verdicts)


class Birkhoff(geoopt.Sphere):
    """Its ``proju`` projects ``x ⊙ u``: right for gradients, no projection."""

    def proju(self, x, u):
        return super().proju(x, x.abs() * u)


class Acos(geoopt.SphereExact):
    """A distance without clamping is NaN at times; with it, it cannot be small."""

    def dist(self, x, y, *, keepdim=False):
        return torch.acos((x * y).sum(-1, keepdim=keepdim).clamp(-1 + 1e-7, 1 - 1e-7))


class Unaligned(qn.NodeWiseQuotient):
    """Carries vectors as they are, whatever representative of the target is asked for."""

    def transp(self, x, y, v):
        return self.proju(y, v)


class Disguised(geoopt.Sphere):
    """``expmap = retr`` in disguise."""

    expmap = geoopt.Sphere.retr


def test_a_birkhoff_projection_is_caught():
    assert "projection_is_idempotent" in failing(Birkhoff(), (5,))
    assert "projection_is_idempotent" in failing(geoopt.BirkhoffPolytope(), (4, 4))


def test_an_acos_distance_is_caught():
    assert "distance_is_length_off_the_orbit" in failing(Acos(), (5,), length=1e-5)


def test_an_unaligned_transport_is_caught():
    manifold = Unaligned(symmetry())
    found = {v.law for v in check_manifold(manifold) if not v.holds}
    assert "transport_is_equivariant" in found
    assert all(law.startswith(("transport", "batch")) for law in found)


def test_an_exponential_in_disguise_is_caught():
    found = failing(Disguised(), (5,))
    assert "geodesics_have_critical_energy" in found
    assert "geodesics_have_critical_energy" not in failing(geoopt.Sphere(), (5,))


# -- measures ---


@cache
def point():
    model = mlp()
    objective = qn.Objective(model, nn.CrossEntropyLoss(), DATA)
    return objective.at(objective.layout.flatten(model))


def claiming(value, *claims):
    def measure(point, group):
        return qn.Estimate(value(point), 0.0, True, 0, claims)

    return measure


def loss(point):
    return float(point.value)


def size(point):
    return float(point.w.norm())


@pytest.mark.parametrize(
    "measure, invariant, law, holds",
    [
        (claiming(loss, "unit scales"), None, "is_invariant", True),
        (claiming(size, "unit scales"), None, "is_invariant", False),
        (claiming(loss), None, "is_not_invariant", False),
        (claiming(size), None, "is_not_invariant", True),
        (claiming(size, "layer scales"), None, "is_not_invariant", True),
        (claiming(size), True, "is_invariant", False),
        (claiming(loss), True, "is_invariant", True),
        (lambda p, g: loss(p), None, "is_invariant", True),
        (lambda p, g: size(p), None, "is_invariant", False),
        (lambda p, g: size(p), False, "is_not_invariant", True),
        ("minimum sharpness", None, "is_invariant", True),
        ("Hessian, largest eigenvalue", None, "is_not_invariant", True),
    ],
)
def test_claims_are_checked_both_ways(measure, invariant, law, holds):
    group = symmetry()
    verdict = check_invariance(measure, point(), group, invariant=invariant)
    assert verdict.law == f"measure_{law}" and verdict.holds == holds, str(verdict)
    assert verdict.tried == 3 and "changes by" in str(verdict)


def test_the_element_of_the_worst_change_replays_it():
    here, group = point(), symmetry().group
    verdict = check_invariance(lambda p, g: size(p), here, group, points=5)
    there = float(group.act(here.w, verdict.sample).norm())
    change = abs(there - size(here)) / max(there, size(here))
    assert verdict.violation == pytest.approx(change)


def test_standard_errors_are_allowed_for_and_failures_count():
    here, group = point(), symmetry()

    def noisy(p, g):
        return qn.Estimate(
            1 + 1e-3 * math.sin(size(p)), 1e-3, False, 0, ("unit scales",)
        )

    def refusing(p, g):
        if p.w is not here.w:
            raise ValueError("too large")
        return 1.0

    def lost(p, g):
        return 1.0 if p.w is here.w else math.nan

    assert check_invariance(noisy, here, group).holds
    assert "too large" in str(check_invariance(refusing, here, group))
    for measure in (refusing, lost):
        assert not check_invariance(measure, here, group).holds


def test_measures_that_cannot_be_checked_are_refused():
    here, group = point(), symmetry().group
    with pytest.raises(ValueError, match="no generators: no measure could fail"):
        check_invariance(lambda p, g: 1.0, here, group.without([True] * 4))
    with pytest.raises(TypeError, match="returned str, it must return an"):
        check_invariance(lambda p, g: "flat", here, group)
    with pytest.raises(TypeError, match="must be a label or a callable"):
        check_invariance(3, here, group)
    wrong = qn.Objective(mlp(activation=nn.GELU), nn.CrossEntropyLoss(), DATA)
    elsewhere = wrong.at(wrong.layout.flatten(wrong.model))
    with pytest.raises(ValueError, match="not invariant under the group"):
        check_invariance(lambda p, g: 1.0, elsewhere, group)


# -- test cases of a model ---


def outcomes(cases):
    found = {}
    for case in cases:
        try:
            found[str(case)] = case.require().holds
        except AssertionError:
            found[str(case)] = False
    return found


def test_a_model_conforms():
    model = mlp()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cases = conformance(model, X, data=DATA, loss=nn.CrossEntropyLoss())
    names = [str(case) for case in cases]
    assert len(set(names)) == len(names)
    found = outcomes(cases)
    assert all(found.values()), [name for name, holds in found.items() if not holds]
    assert {"symmetry is sound", "symmetry is complete"} <= set(names)
    assert sum(name.startswith("measure: ") for name in names) == 3
    assert sum(name.startswith("NodeWiseQuotient: ") for name in names) > 35
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_model_that_does_not_conform_says_where():
    model = mlp(activation=nn.GELU)
    wrong = symmetry().group
    manifold = Unaligned(wrong)
    cases = conformance(model, X, symmetry=wrong, manifold=manifold)
    words = ("symmetry", "transport is equi")
    found = outcomes([c for c in cases if any(word in str(c) for word in words)])
    bad = {name for name, holds in found.items() if not holds}
    assert {"symmetry is sound", "symmetry is complete"} <= bad
    assert "Unaligned: transport is equivariant" in bad
    few = conformance(
        mlp(),
        X,
        data=DATA,
        loss=nn.CrossEntropyLoss(),
        measures={"size": lambda p, g: size(p)},
    )
    assert outcomes([c for c in few if "measure" in str(c)]) == {"measure: size": False}


def test_half_of_what_measures_need_is_refused():
    for options in ({"data": DATA}, {"loss": nn.MSELoss()}, {"measures": ["trace"]}):
        with pytest.raises(ValueError, match="measures need data and loss, both"):
            conformance(mlp(), X, **options)


TEST_FILE = """
import pytest, torch
from quotientnet.testing import conformance
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.{}(), torch.nn.Linear(2, 1)).double()
{}
@pytest.mark.parametrize("case", conformance(model, torch.randn(5, 2), symmetry=group), ids=str)
def test_model(case):
    case.require()
"""


class Recorder:
    """What a run of pytest reports."""

    def __init__(self):
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            self.outcomes[report.nodeid.split("::")[-1]] = report.outcome


@pytest.mark.parametrize(
    "activation, group, outcome",
    [
        ("ReLU", "group = None", "passed"),
        (
            "GELU",
            "import quotientnet as qn\n"
            "relu = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), "
            "torch.nn.Linear(2, 1))\n"
            "group = qn.discover(relu, torch.randn(5, 2)).group",
            "failed",
        ),
    ],
)
def test_five_lines_of_pytest(activation, group, outcome, tmp_path):
    """A right model, and the group of another model."""
    file = tmp_path / f"test_{activation}_model.py"
    file.write_text(TEST_FILE.format(activation, group))
    recorder = Recorder()
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    pytest.main([*options, "-k", "symmetry or metric", str(file)], plugins=[recorder])
    found = recorder.outcomes
    assert found["test_model[symmetry is sound]"] == outcome
    assert found["test_model[symmetry is complete]"] == outcome
    laws = [name for name in found if "NodeWiseQuotient: metric" in name]
    assert len(laws) == 4 and all(found[name] == "passed" for name in laws)
