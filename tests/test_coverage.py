"""The table of operations in the manual: it agrees with the rules, and nothing in it is unknown."""

import json
from pathlib import Path

import pytest
from architectures import ARCHITECTURES
from attention_networks import ATTENTION
from family_networks import FAMILY_BLOCKS
from recurrent_networks import RECURRENT
from torch import nn
from torch_layers import LAYERS, LIMITS, NO_GRAPH

import quotientnet as qn
from quotientnet.symmetry.control import CONTROL
from quotientnet.symmetry.rules import RULES, reason_of

FACTS = json.loads(
    (Path(__file__).parent.parent / "docs/results/operations.json").read_text()
)
OPERATIONS = {row["operation"]: row for row in FACTS["operations"]}


def test_every_rule_says_what_it_does():
    silent = [name for name in RULES if not reason_of(name).endswith(".")]
    assert not silent
    assert all(f.__doc__.endswith(".") for f in CONTROL.values())


def test_no_operation_is_unknown_and_each_has_the_reason_of_its_rule():
    assert len(OPERATIONS) > 200
    for name, row in OPERATIONS.items():
        assert "unknown" not in row["treatments"], name
        if {"rule", "pins"} & set(row["treatments"]):
            says = CONTROL[name].__doc__ if name in CONTROL else reason_of(name)
            assert row["reason"] == says, f"{name}: run tests/benchmarks/operations.py"


def test_all_networks_are_in_the_table_sound_and_complete():
    named = {row["name"] for row in FACTS["models"] if row["group"] != "transformers"}
    own = {*ARCHITECTURES, *ATTENTION, *FAMILY_BLOCKS, *RECURRENT} - {
        "unknown operation"
    }
    later = {name for name in ("LinearCrossEntropyLoss",) if not hasattr(nn, name)}
    assert named == own | (set(LAYERS) - set(NO_GRAPH)) | later
    families = [row for row in FACTS["models"] if row["group"] == "transformers"]
    assert len(families) >= 20 and FACTS["transformers"]
    for row in FACTS["models"]:
        assert row["sound"] and row["violation"] < 1e-9 and row["extra"] == 0
        assert row["complete"] or row["name"] in LIMITS


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    "name", ["gpt", "llama", "experts, sorted", "rotary, complex", "lstm"]
)
def test_the_table_is_what_discover_says_today(name):
    made = (ATTENTION | RECURRENT)[name]
    symmetry = qn.discover(made.build().eval(), made.inputs())
    assert not symmetry.unknown
    for c in symmetry.coverage:
        row = OPERATIONS[c.operation]
        assert c.treatment in row["treatments"] and c.reason in (row["reason"], "")
