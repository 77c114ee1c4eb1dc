"""Translations of small transformers as people have them: numbers derived and by derivatives."""

import pytest
import torch
from torch import nn

import quotientnet as qn
from quotientnet.symmetry import (
    fix_translations,
    verify_translations,
    verify_translations_complete,
)

transformers = pytest.importorskip("transformers")

WORDS = torch.arange(10).view(2, 5)
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}


class Plain(nn.Module):
    """A model whose output is one tensor."""

    def __init__(self, model, **options):
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x):
        """Scores, or the last hidden state."""
        out = self.model(x, **self.options)
        return out.logits if hasattr(out, "logits") else out.last_hidden_state


def vit():
    """A vision transformer of width 8 on four patches."""
    config = transformers.ViTConfig(
        hidden_size=8, image_size=8, patch_size=4, num_labels=3, **SMALL
    )
    return Plain(transformers.ViTForImageClassification(config)), torch.randn(
        2, 3, 8, 8
    )


def gpt2(tied):
    """A language model of width 8, its words read out by their own table or by another."""
    config = transformers.GPT2Config(
        vocab_size=10, n_positions=5, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=tied,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Plain(transformers.GPT2LMHeadModel(config), use_cache=False), WORDS


def bert():
    """An encoder of width 8, all of whose words and positions are used."""
    config = transformers.BertConfig(
        vocab_size=10,
        hidden_size=8,
        max_position_embeddings=5,
        type_vocab_size=1,
        **SMALL,
    )
    return Plain(transformers.BertModel(config, add_pooling_layer=False)), WORDS


def llama():
    """Rotary, gated, RMS-normalised: nothing can be shifted."""
    config = transformers.LlamaConfig(
        vocab_size=10, hidden_size=8, num_key_value_heads=1, bos_token_id=None,
        eos_token_id=None, **SMALL,
    )  # fmt: skip
    return Plain(transformers.LlamaForCausalLM(config), use_cache=False), WORDS


def t5():
    """Only the biases of distances, one a head, are forgotten by the softmax."""
    config = transformers.T5Config(
        vocab_size=10, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2,
        relative_attention_num_buckets=4, relative_attention_max_distance=8,
    )  # fmt: skip
    return Plain(transformers.T5EncoderModel(config)), WORDS


# A layer that normalises first: keys, values and both norms' shifts 4 · 8, what writes to the
# stream 8 + 1 and hidden + 1.
LAYER = 4 * 8 + (8 + 1)
BY_HAND = {
    # patches: weights 48, and with the first position's and four others' biases 8 + 8 + 5
    "vit": (vit, 48 + 8 + 8 + 5 + 2 * (LAYER + 12 + 1) + 8),
    "gpt2": (lambda: gpt2(True), 5 + 2 * (LAYER + 32 + 1)),
    "gpt2, two tables": (lambda: gpt2(False), (9 + 8) + 5 + 2 * (LAYER + 32 + 1)),
    # words 9 + 8, one type 8, positions 5; a norm's shift 8 twice a layer but for the last
    "bert": (bert, (9 + 8) + 8 + 5 + 2 * (2 * 8 + (8 + 1) + (12 + 1) + 2 * 8)),
    "llama": (llama, 0),
    "t5": (t5, 2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_sound_complete_and_of_the_dimension_by_hand(name):
    torch.manual_seed(0)
    make, expected = BY_HAND[name]
    model, x = make()
    symmetry = qn.discover(model.eval(), x)
    assert sum(t.dimension for t in symmetry.translations) == expected
    verify_translations(model, symmetry, x).require()
    if name != "t5":  # not all distances are met, which leaves entries without effect
        complete = verify_translations_complete(model, symmetry, x).require()
        assert complete.gap > 1e6
    layout = symmetry.group.layout
    w = layout.flatten(model.double())
    if expected:
        fixed = fix_translations(w, symmetry)
        x = x.double() if x.is_floating_point() else x
        before = model(x)
        layout.assign(model, fixed)
        assert torch.allclose(model(x), before, rtol=1e-9, atol=1e-9)
