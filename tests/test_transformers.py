"""Families from transformers: sound, complete, of the dimension by hand. Needs that library."""

import pytest
import torch

import quotientnet as qn

pytest.importorskip("transformers")

from families import FAMILIES, TIED, Member, Sizes, verifiable  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def derive(member):
    """A member in arithmetic of float64, its inputs, and its symmetry."""
    model, inputs = member.build(), member.inputs()
    return verifiable(model), inputs, qn.discover(member.build(), inputs)


def dimension_of(member):
    """Of the group, from the sizes alone."""
    s = member.sizes
    width, values, rotary = s.width, s.heads * s.size, s.shared * s.size // 2
    norms = (2 if member.tied else 3) * width
    shared = 1 + norms + s.shared * s.size  # the stream, norms, values
    return {
        # the stream, two norms a block and the last one; queries against keys, and values
        "ViT": 1 + width + s.layers * (2 * width + 2 * values),
        # what three norms see, attention, what the pooler reads of the last one
        "BERT": 3 + 2 * values + width,
        "GPT-2": 1 + norms + 2 * values,
        # tied; the encoder's last norm is an output
        "T5": 1 + 5 * width + 3 * 2 * values + 2 * s.hidden,
        "T5 gated": 1 + 5 * width + 3 * 2 * values + 2 * s.hidden,
        # pairs of rotated channels, gated units
        "Llama": shared + rotary + s.hidden,
        "Qwen2": shared + rotary + s.hidden,
        "Mixtral": shared + rotary + 3 * s.hidden,
        # one for each head of queries and of keys, and one for each pair of their weights
        "Qwen3": shared + s.heads + s.shared + s.size // 2 + s.hidden,
    }[member.family]


MEMBERS = [
    Member(family, attention, sizes=Sizes(layers=2 if family == "ViT" else 1))
    for family in FAMILIES
    for attention in (("sdpa",) if family.startswith("T5") else ("sdpa", "eager"))
] + [Member(family, tied=True) for family in TIED]


def label(member):
    return f"{member.family}, {member.attention}{', tied' * member.tied}"


@pytest.mark.parametrize("member", MEMBERS, ids=label)
def test_sound_complete_and_of_the_dimension_by_hand(member):
    model, inputs, symmetry = derive(member)
    assert not symmetry.unknown
    assert symmetry.group.dimension == dimension_of(member)
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    found = qn.verify_complete(model, symmetry, inputs).require()
    assert found.candidates == "entries" and found.gap > 1e6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["GPT-2", "Llama", "Mixtral", "Qwen3"])
def test_of_random_sizes(family, seed):
    draw = torch.Generator().manual_seed(seed)

    def one_of(*choices):
        return choices[int(torch.randint(len(choices), (), generator=draw))]

    shared = one_of(1, 2)
    sizes = Sizes(
        heads=shared * one_of(1, 2),
        shared=shared,
        size=one_of(2, 4),
        hidden=one_of(2, 3, 5),
    )
    member = Member(family, one_of("sdpa", "eager"), sizes=sizes)
    model, inputs, symmetry = derive(member)
    assert symmetry.group.dimension == dimension_of(member)
    qn.verify_sound(model, symmetry, inputs, modes=["own"]).require()
    found = qn.verify_complete(model, symmetry, inputs)
    assert found.extra == 0
    if found.candidates == "entries":
        found.require()
