"""Translations: of the dimension by hand, sound in full, and all that derivatives allow."""

import copy
import json
import pickle

import pytest
import torch
from architectures import on
from torch import nn
from translation_networks import HAND_MADE, LINEAR_CHAINS, SEEN_IN_PLACE

import quotientnet as qn
from quotientnet.symmetry import (
    fix_translations,
    verify_translations,
    verify_translations_complete,
)
from quotientnet.symmetry.translations import complete
from quotientnet.symmetry.translations.registry import SHIFT_RULES
from quotientnet.symmetry.translations.unknowns import Unknowns


def derive(architecture, training=False):
    """A network, its inputs and its symmetry."""
    model, inputs = architecture.build().train(training), architecture.inputs()
    return model, inputs, qn.discover(model, inputs)


def dimension(symmetry):
    """Of all translations."""
    return sum(t.dimension for t in symmetry.translations)


def named(symmetry, start):
    """The one whose name starts so."""
    (found,) = [t for t in symmetry.translations if t.name.startswith(start)]
    return found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", HAND_MADE)
def test_sound_complete_and_of_the_dimension_by_hand(name, training):
    model, inputs, symmetry = derive(HAND_MADE[name], training)
    assert dimension(symmetry) == HAND_MADE[name].dimension
    found = verify_translations(model, symmetry, inputs, modes=("own", "train", "eval"))
    assert found.require().violation < 1e-10
    weights = name not in LINEAR_CHAINS
    complete = verify_translations_complete(model, symmetry, inputs, weights=weights)
    assert complete.require().gap > 1e6


@pytest.mark.parametrize("widths", [(3, 7), (5, 2), (8, 8)])
@pytest.mark.parametrize("normalisation", [nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm])
def test_dimension_at_any_width(normalisation, widths):
    inputs, width = widths
    make = on(
        (6, inputs), 0,
        lambda: nn.Sequential(nn.Linear(inputs, width), normalisation(width), nn.GELU()),
    )  # fmt: skip
    _, _, symmetry = derive(make, True)
    expected = {"BatchNorm1d": width, "LayerNorm": inputs + 1, "RMSNorm": 0}
    assert dimension(symmetry) == expected[normalisation.__name__]


def test_what_is_seen_by_a_view_while_it_is_written_does_not_move():
    model, inputs, symmetry = derive(SEEN_IN_PLACE)
    assert dimension(symmetry) == 0


def test_a_value_bias_is_made_up_for_by_the_projection():
    model, _, symmetry = derive(HAND_MADE["attention"])
    layout, value = symmetry.group.layout, named(symmetry, "v.bias")
    w, s = layout.flatten(model), torch.randn(4).double()
    before, after = layout.unflatten(w), layout.unflatten(value.act(w, s))
    assert torch.equal(after["v.bias"], before["v.bias"] + s)
    assert torch.allclose(after["o.bias"], before["o.bias"] - before["o.weight"] @ s)
    same = [n for n in before if torch.equal(before[n], after[n])]
    assert (
        set(same)
        == set(before) - {"v.bias", "o.bias"}
        == set(before) - set(value.moved)
    )


def test_shared_heads_add_up_in_the_projection():
    model, _, symmetry = derive(HAND_MADE["attention, shared heads"])
    layout, value = symmetry.group.layout, named(symmetry, "v.bias")
    w, s = layout.flatten(model), torch.tensor([1.0, -2.0]).double()
    before, after = layout.unflatten(w), layout.unflatten(value.act(w, s))
    both = (
        before["o.weight"].unflatten(1, (2, 2)).sum(1) @ s
    )  # one head of values, two of queries
    assert torch.allclose(before["o.bias"] - after["o.bias"], both)


def test_linear_layers_hand_biases_on():
    model, _, symmetry = derive(HAND_MADE["three linear layers"])
    layout, first = symmetry.group.layout, named(symmetry, "0.bias")
    w, s = layout.flatten(model), torch.randn(3).double()
    before, after = layout.unflatten(w), layout.unflatten(first.act(w, s))
    taken = before["2.weight"] @ before["1.weight"] @ s
    assert torch.allclose(before["2.bias"] - after["2.bias"], taken)
    assert torch.equal(before["1.bias"], after["1.bias"])


def test_running_means_move_with_the_bias():
    model, _, symmetry = derive(HAND_MADE["batch norm"], True)
    layout, bias = symmetry.group.layout, named(symmetry, "0.bias")
    w, s = layout.flatten(model), torch.randn(5).double()
    moved = layout.unflatten(bias.act(w, s) - w)
    assert (
        torch.allclose(moved["1.running_mean"], s) and not moved["1.running_var"].any()
    )
    assert bias.absorbed_by == ("batch_norm in 1",)


def test_words_against_positions():
    model, _, symmetry = derive(HAND_MADE["words and positions"])
    layout = symmetry.group.layout
    w, s = layout.flatten(model), torch.randn(4).double()
    moved = layout.unflatten(named(symmetry, "words.weight: all rows").act(w, s) - w)
    assert torch.allclose(moved["words.weight"], s.expand(7, 4))
    assert torch.allclose(moved["places"], -s.expand(5, 4))


def test_basis_is_linear_in_the_coefficients():
    model, _, symmetry = derive(HAND_MADE["attention in a stream"])
    w = symmetry.group.layout.flatten(model)
    for t in symmetry.translations:
        s = torch.randn(t.dimension).double()
        assert torch.allclose(t.act(w, s) - w, t.basis(w) @ s, atol=1e-12)
    together = torch.cat([t.basis(w) for t in symmetry.translations], 1)
    assert (
        torch.linalg.matrix_rank(together) == dimension(symmetry) == together.shape[1]
    )


def test_report_json_copies():
    model, inputs, symmetry = derive(HAND_MADE["attention"])
    assert "8 dimensions of translations" in str(symmetry)
    assert "k.bias: all entries, forgotten by" in str(symmetry)
    facts = json.loads(symmetry.to_json())["translations"]
    assert [f["dimension"] for f in facts] == [4, 4]
    assert facts[1]["moved"] == ["v.bias", "o.bias"]
    for other in (copy.deepcopy(symmetry), pickle.loads(pickle.dumps(symmetry))):
        assert verify_translations(model, other, inputs).holds


@pytest.mark.parametrize(
    "name", ["attention in a stream", "words and rows of positions", "batch norm"]
)
def test_fixing_is_a_canonical_form(name):
    model, inputs, symmetry = derive(HAND_MADE[name])
    layout = symmetry.group.layout
    w = torch.randn(layout.size).double()
    w[layout.parameter_size :] = 1.0
    moved = w
    for t in symmetry.translations:
        moved = t.act(moved, torch.randn(t.dimension).double())
    fixed = fix_translations(w, symmetry)
    assert torch.allclose(fix_translations(moved, symmetry), fixed, atol=1e-12)
    assert torch.allclose(fix_translations(fixed, symmetry), fixed, atol=1e-13)
    here, there = (
        torch.func.functional_call(model, layout.substitutes(model, p), (inputs,))
        for p in (w, fixed)
    )
    assert torch.allclose(here, there, rtol=1e-10) and not torch.allclose(w, fixed)


def test_frozen_parameters_do_not_move_but_multiply():
    model, inputs, _ = derive(HAND_MADE["attention"])
    model.o.weight.requires_grad_(False)
    symmetry = qn.discover(model, inputs)
    assert dimension(symmetry) == 8
    assert verify_translations(model, symmetry, inputs).holds
    model.o.bias.requires_grad_(False)
    assert dimension(qn.discover(model, inputs)) == 4


def test_dropout_in_train_mode():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.3, batch_first=True).double()
    x = torch.randn(3, 5, 4).double()
    rough, still = (qn.discover(layer.train(mode), x) for mode in (True, False))
    assert dimension(rough) < dimension(still)
    assert verify_translations(layer.train(), rough, x, modes=("train", "eval")).holds
    found = verify_translations(layer.train(), still, x, modes=("train",))
    assert not found.holds and "changes outputs by" in found.generator


def test_a_wrong_translation_is_named(monkeypatch):
    """The laws broken by hand: a mean that is not required, a query that may move."""
    monkeypatch.setattr(Unknowns, "uniform", lambda self, x, axes, absorb=False: x)
    model, inputs, symmetry = derive(HAND_MADE["layer norm"])
    found = verify_translations(model, symmetry, inputs)
    assert not found.holds
    with pytest.raises(AssertionError, match="0.weight|0.bias"):
        found.require()
    assert verify_translations_complete(model, symmetry, inputs).extra > 0


def test_a_missing_translation_is_named(monkeypatch):
    monkeypatch.delitem(SHIFT_RULES, "aten::softmax")
    model, inputs, symmetry = derive(HAND_MADE["softmax"])
    assert dimension(symmetry) == 0
    found = verify_translations_complete(model, symmetry, inputs)
    # half of the five columns that may move are candidates, and the bias
    assert found.missing == 2 + 1 and set(found.where) == {"net.2.weight", "net.2.bias"}
    with pytest.raises(
        AssertionError, match="3 missing, moving net.2.weight, net.2.bias"
    ):
        found.require()


def test_gates_of_a_recurrent_layer_trade_their_biases():
    """By hand: only two thirds of a GRU add both, the last multiplies one of them by a gate."""
    model, _, symmetry = derive(HAND_MADE["GRU"])
    layout, trade = symmetry.group.layout, named(symmetry, "r.bias_ih_l0")
    w, s = layout.flatten(model), torch.randn(6).double()
    moved = layout.unflatten(trade.act(w, s) - w)
    expected = torch.cat([s, torch.zeros(3).double()])
    assert torch.allclose(moved["r.bias_ih_l0"], expected)
    assert torch.allclose(moved["r.bias_hh_l0"], -expected)
    before = layout.unflatten(w)
    handed = layout.unflatten(named(symmetry, "i.bias").act(w, s[:3]) - w)
    both = handed["r.bias_ih_l0"] + handed["r.bias_hh_l0"]
    assert torch.allclose(both, -before["r.weight_ih_l0"] @ s[:3])


def test_units_that_are_off_or_on_do_not_count(monkeypatch):
    torch.manual_seed(0)
    layers = [m for n in (4, 3, 3) for m in (nn.Linear(n, 3), nn.ReLU())]
    model, inputs = nn.Sequential(*layers, nn.Linear(3, 2)), torch.randn(6, 4)
    symmetry = qn.discover(model, inputs)

    def found(seed):
        return verify_translations_complete(model, symmetry, inputs, seed=seed)

    for seed in range(4):
        assert found(seed).require().found == 0 and found(seed).idle == ()
    # the law broken by hand: one point alone allows more, or has units that are off
    monkeypatch.setattr(complete, "_POINTS", 1)
    alone = [found(seed) for seed in range(4)]
    assert any(c.missing for c in alone) and any(c.idle for c in alone)


def test_words_that_the_ids_do_not_contain_do_not_count():
    network = HAND_MADE["words and positions"]
    model, ids = network.build(), torch.arange(15).view(3, 5) % 4
    symmetry = qn.discover(model, ids)
    found = verify_translations_complete(model, symmetry, ids)
    assert found.require().found == network.dimension - 3  # three words by themselves
    assert found.idle == ("words.weight",)


def test_errors():
    model, inputs, symmetry = derive(HAND_MADE["attention"])
    w = symmetry.group.layout.flatten(model)
    with pytest.raises(ValueError, match="one point and 4 coefficients"):
        symmetry.translations[0].act(w, torch.zeros(3).double())
    with pytest.raises(TypeError, match="needs what discover returned"):
        fix_translations(w, symmetry.group)
    with pytest.raises(ValueError, match="got no translations"):
        verify_translations(model, (), inputs)
    with pytest.raises(ValueError, match="one point"):
        fix_translations(w[None], symmetry)


@pytest.mark.parametrize(
    "options", [{"modes": ["foo"]}, {"modes": "eval"}, {"modes": []}, {"modes": None},
                {"samples": 0}, {"tolerance": float("nan")}, {"tolerance": -1.0}],
)  # fmt: skip
def test_what_would_try_nothing_is_refused(options):
    model, inputs, symmetry = derive(HAND_MADE["layer norm"])
    (name,) = options
    with pytest.raises(ValueError, match=f"^verify_translations: .*{name}"):
        verify_translations(model, symmetry, inputs, **options)
    with pytest.raises(ValueError, match=f"^verify_sound: .*{name}"):
        qn.verify_sound(model, symmetry, inputs, **options)


def test_errors_name_the_call():
    model, inputs, symmetry = derive(HAND_MADE["layer norm"])
    with pytest.raises(
        ValueError, match="^verify_translations: an input of shape .0, 4."
    ):
        verify_translations(model, symmetry, inputs[:0])
    with pytest.raises(
        ValueError, match="^verify_translations: an input of shape .0, 4."
    ):
        verify_translations(model, symmetry, inputs, second_inputs=inputs[:0])
    for wrong in ("s", None, symmetry.translations):
        with pytest.raises(
            TypeError, match=r"complete: symmetry must be what discover\("
        ):
            verify_translations_complete(model, wrong, inputs)


def test_wrong_points_and_coefficients():
    model, _, symmetry = derive(HAND_MADE["layer norm"])
    w, first = symmetry.group.layout.flatten(model), symmetry.translations[0]
    with pytest.raises(
        TypeError, match=r"Translation.act: s .* got list; use torch.tensor"
    ):
        first.act(w, [1.0] * 4)
    with pytest.raises(
        ValueError, match="Translation.act: 4 of the 4 coefficients s are not"
    ):
        first.act(w, torch.full((4,), torch.nan))
    with pytest.raises(
        ValueError, match="Translation.act: needs one point, .* call it for each"
    ):
        first.act(w[None], torch.ones(4))
    with pytest.raises(
        TypeError, match="Translation.basis: w must be a torch.Tensor, got str"
    ):
        first.basis("w")
    with pytest.raises(
        ValueError, match="fix_translations: w .* not finite, in 0.weight"
    ):
        fix_translations(w * torch.nan, symmetry)
    with pytest.raises(ValueError, match="is one twice; pass each once"):
        fix_translations(w, (first, first))
