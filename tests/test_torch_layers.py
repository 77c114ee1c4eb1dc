"""Every layer of torch.nn: sound, complete, no operation unknown; or a limit that is named."""

import pytest
from torch_layers import LAYERS, LIMITS, NO_GRAPH, NO_LAYERS, classes

import quotientnet as qn


def test_no_class_of_torch_is_left_out():
    named = {name.split(",")[0].split(" ")[0] for name in LAYERS}
    assert classes() == named | NO_LAYERS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in LAYERS if n not in NO_GRAPH])
def test_sound_complete_and_without_unknown_operations(name):
    layer = LAYERS[name]
    model, inputs = layer.build(), layer.inputs()
    symmetry = qn.discover(model, inputs)
    assert not symmetry.unknown
    assert all(c.reason for c in symmetry.coverage if c.treatment in ("rule", "pins"))
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    found = qn.verify_complete(model, symmetry, inputs)
    if name in LIMITS:
        assert found.extra == 0 and found.missing and found.jump > 1e-12
    else:
        found.require()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NO_GRAPH)
def test_what_torch_cannot_export_is_refused_by_its_name(name):
    layer = LAYERS[name]
    with pytest.raises(ValueError, match=f"cannot be exported .* in layer \\({name}"):
        qn.discover(layer.build(), layer.inputs())
