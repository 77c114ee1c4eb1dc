"""Mappings, classes and equalisation of small models of the transformers library, by hand."""

import os

import numpy as np
import pytest
import torch

import quotientnet as qn
from quotientnet.symmetry import balancing
from quotientnet.symmetry.replica import Replica, relative_change

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

WORDS = {
    "vocab_size": 7,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GROUPED = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 8, **WORDS,
}  # fmt: skip
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def ids():
    return {"input_ids": torch.arange(15).view(3, 5) * 3 % 7}


def llama(**options):
    config = transformers.LlamaConfig(intermediate_size=6, **GROUPED, **options)
    return transformers.LlamaForCausalLM(config), ids()


def mixtral():
    config = transformers.MixtralConfig(
        intermediate_size=3, num_local_experts=3, num_experts_per_tok=2, **GROUPED
    )
    return transformers.MixtralForCausalLM(config), ids()


def gpt2():
    config = transformers.GPT2Config(
        n_positions=6, n_embd=8, n_layer=1, n_head=2, n_inner=6, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, **{k: v for k, v in WORDS.items() if k != "pad_token_id"},
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), ids()


def vit():
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
        image_size=4, patch_size=2, num_channels=2, num_labels=3, **QUIET,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return transformers.ViTForImageClassification(config), {
        "pixel_values": torch.randn(3, 2, 4, 4, generator=generator).double()
    }


MODELS = {"llama": llama, "mixtral": mixtral, "gpt2": gpt2, "vit": vit}
_KEPT: dict = {}


def derived(name, **options):
    """A model in float64 and eval mode, moved off its initial values, its inputs, its symmetry."""
    key = name, *options.items()
    if key not in _KEPT:
        torch.manual_seed(0)
        model, inputs = MODELS[name](**options)
        model = model.double().eval()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.1 * torch.randn_like(p)
        _KEPT[key] = model, inputs, qn.discover(model, inputs)
    return _KEPT[key]


def table(mappings):
    """``source parts -> target parts``: axes and places a channel where there are several."""

    def side(parts):
        def text(p):
            name = p.parameter.removeprefix("model.").removeprefix("layers.0.")
            axes = "".join(map(str, p.axes))
            return f"{name.removesuffix('.weight')}/{axes}" + (
                f"x{p.places}" if p.places > 1 else ""
            )

        return {text(p) for p in parts}

    return [(side(m.sources), m.channels, side(m.targets)) for m in mappings]


ATTENTION = [
    ({"input_layernorm/0"}, 8, {f"self_attn.{n}_proj/1" for n in "qkv"}),
    # two heads of queries, one of keys: pairs of channels that a rotation turns into each other
    ({"self_attn.q_proj/0x4"}, 2, {"self_attn.k_proj/0x2"}),
    ({"self_attn.v_proj/0"}, 4, {"self_attn.o_proj/1x2"}),
]
LAST = ({"norm/0"}, 8, {"lm_head/1"})
LLAMA = [
    *ATTENTION, ({"post_attention_layernorm/0"}, 8, {"mlp.gate_proj/1", "mlp.up_proj/1"}),
    ({"mlp.up_proj/0"}, 6, {"mlp.down_proj/1"}),
]  # fmt: skip
TIED = ({"embed_tokens/", "self_attn.o_proj/", "mlp.down_proj/"}, 1, {"norm/"})


def test_llama_by_hand():
    assert table(qn.scale_mappings(derived("llama")[2])) == [*LLAMA, LAST]


def test_llama_with_tied_embeddings_keeps_one_scale_of_the_last_norm():
    found = table(qn.scale_mappings(derived("llama", tie_word_embeddings=True)[2]))
    assert found == [TIED, *LLAMA]


def test_mixtral_by_hand():
    """The first matrices of all experts are one parameter: rows are experts times channels, of
    which the first half is gates and has no mapping."""
    model, _, symmetry = derived("mixtral")
    mappings = qn.scale_mappings(symmetry)
    assert table(mappings) == [
        *ATTENTION,
        (
            {"post_attention_layernorm/0"},
            8,
            {"mlp.gate/1", "mlp.experts.gate_up_proj/2"},
        ),
        ({"mlp.experts.gate_up_proj/01"}, 9, {"mlp.experts.down_proj/02"}),
        LAST,
    ]
    (part,) = mappings[4].sources
    up = [[-1, -1, -1, 3 * e, 3 * e + 1, 3 * e + 2] for e in range(3)]
    assert part.channels.tolist() == up
    assert (
        mappings[4].targets[0].channels.tolist() == np.arange(9).reshape(3, 3).tolist()
    )


def test_sizes_of_each_expert_are_those_of_its_own_tokens():
    model, inputs, symmetry = derived("mixtral")
    sizes = qn.symmetry.channel_sizes(model, symmetry, [inputs])
    experts, seen = model.model.layers[0].mlp.experts, torch.zeros(3, 3).double()

    def note(module, args):
        hidden, chosen = args[0].reshape(-1, 8), args[1].reshape(-1, 2)
        for e in range(3):
            own = hidden[(chosen == e).any(1)]
            gate, up = (own @ module.gate_up_proj[e].T).chunk(2, -1)
            seen[e] = (torch.nn.functional.silu(gate) * up).abs().amax(0)

    hook = experts.register_forward_pre_hook(note)
    kept = model.config._experts_implementation
    try:
        model.set_experts_implementation("eager")
        with torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
        model.set_experts_implementation(kept)
    mapping = qn.scale_mappings(symmetry)[4]
    torch.testing.assert_close(sizes.activations[mapping.generators].view(3, 3), seen)


@pytest.mark.parametrize("name", MODELS)
def test_smoothing_leaves_the_function(name):
    model, inputs, symmetry = derived(name)
    sizes = qn.symmetry.channel_sizes(model, symmetry, [inputs])
    t = qn.symmetry.smoothing(sizes)
    assert sizes.seen.any() and (t != 0).any()
    replica = Replica(model, symmetry.group.layout, "test")
    before, after = (replica.run(w, (), inputs)[0] for w in (
        replica.w, symmetry.group.act(replica.w, t)))  # fmt: skip
    assert max(relative_change(a, b) for a, b in zip(before, after)) < 1e-12


# Scales of streams, which norms forget: all writers are on one side, unless tied embeddings put the
# last norm on the other. In a last layer the class token's stream is not that of the patches, which
# nothing reads any more.
STREAMS = {"llama": 1, "mixtral": 1, "gpt2": 0, "vit": 2}


@pytest.mark.parametrize("name", MODELS)
def test_equalised_ranges_and_the_same_function(name):
    """Largest entries on both sides of each generator, by its dense exponents."""
    model, inputs, symmetry = derived(name)
    group = symmetry.group
    replica = Replica(model, group.layout, "test")
    found = balancing(replica.w, group, norm="max")
    moved = group.act(replica.w, found.t)
    sizes, exponents = moved.abs().numpy()[:, None], group.to_dense()
    up, down = ((sizes * (s * exponents > 0)).max(0) for s in (1, -1))
    both = (up > 0) & (down > 0)
    assert (~both).sum() == STREAMS[name]
    np.testing.assert_allclose(up[both], down[both], rtol=1e-12)
    before, after = (replica.run(w, (), inputs)[0] for w in (replica.w, moved))
    assert max(relative_change(a, b) for a, b in zip(before, after)) < 1e-12


CLASSES = {
    # the stream, heads, channels of queries with keys, of values, hidden units
    "vit": [((8,), 13), ((2,), 4), ((2, 4), 2), ((2, 4), 2), ((6,), 2)],
    "gpt2": [((8,), 9), ((2,), 2), ((2, 4), 1), ((2, 4), 2), ((6,), 2)],
    # rotations fix channels of queries and keys; two heads of queries share one of keys
    "llama": [((8,), 12), ((2,), 2), ((4,), 2), ((6,), 3)],
    "mixtral": [((8,), 12), ((2,), 2), ((4,), 2), ((3,), 2)],
}


@pytest.mark.parametrize("name", MODELS)
def test_permutation_classes_by_hand(name):
    """Shapes, and how many parameters move, biases not counted."""
    model, inputs, _ = derived(name)
    classes = qn.permutation_classes(model, inputs)
    names = [{m.parameter for m in c.moves} for c in classes]
    moved = [sum(not name.endswith(".bias") for name in own) for own in names]
    assert not classes.refused
    assert [(c.shape, n) for c, n in zip(classes, moved)] == CLASSES[name]
