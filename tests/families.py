"""Small members of the families that people train, from their configurations in transformers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import transformers
from torch import nn

EPS = 1e-30
"""Of normalisations: so small that their symmetry is exact."""

FAMILIES = (
    "ViT",
    "GPT-2",
    "Llama",
    "Mixtral",
    "BERT",
    "T5",
    "T5 gated",
    "Qwen2",
    "Qwen3",
)

TIED = ("GPT-2", "Llama", "Qwen2", "Qwen3")
"""Families whose table of words may be the last layer as well."""

WORDS, SHAPE = 7, (3, 5)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a small transformer.

    Attributes:
        heads: Of queries.
        shared: Of keys and values, where a family shares them.
        size: Of a head.
        hidden: Units of the two layers behind attention.
        layers: Blocks.
    """

    heads: int = 2
    shared: int = 1
    size: int = 4
    hidden: int = 6
    layers: int = 1

    @property
    def width(self) -> int:
        """Of the stream."""
        return self.heads * self.size


@dataclass(frozen=True)
class Member:
    """A small member of a family.

    Attributes:
        family: One of :data:`FAMILIES`.
        attention: ``"sdpa"`` or ``"eager"``.
        tied: Whether the table of words is also the last layer.
        sizes: Of the network.
    """

    family: str
    attention: str = "sdpa"
    tied: bool = False
    sizes: Sizes = field(default_factory=Sizes)

    def build(self) -> nn.Module:
        """The model with seeded parameters in float64, in eval mode; none of them is zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _MAKE[self.family](self).double().eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.2 * torch.randn_like(parameter)
        return model

    def inputs(self) -> dict[str, torch.Tensor]:
        """Seeded inputs; every word is among them."""
        generator = torch.Generator().manual_seed(3)
        if self.family == "ViT":
            return {
                "pixel_values": torch.randn(3, 2, 4, 4, generator=generator).double()
            }
        words = torch.randperm(15, generator=generator).view(SHAPE) % WORDS
        inputs = {"input_ids": words}
        if self.family.startswith("T5"):
            inputs["decoder_input_ids"] = words.flip(0)[:, :4]
        return inputs


def verifiable(model: nn.Module) -> nn.Module:
    """The model, in place: experts one by one, because the grouped product has no float64."""
    if hasattr(model, "set_experts_implementation") and any(
        "Experts" in type(module).__name__ for module in model.modules()
    ):
        model.set_experts_implementation("batched_mm")
    return model


def _vit(member: Member) -> nn.Module:
    sizes = member.sizes
    return transformers.ViTForImageClassification(transformers.ViTConfig(
        hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        intermediate_size=sizes.hidden, image_size=4, patch_size=2, num_channels=2, num_labels=3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=EPS,
        attn_implementation=member.attention,
    ))  # fmt: skip


def _gpt2(member: Member) -> nn.Module:
    sizes = member.sizes
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=WORDS, n_positions=6, n_embd=sizes.width, n_layer=sizes.layers,
        n_head=sizes.heads, n_inner=sizes.hidden, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        layer_norm_epsilon=EPS, use_cache=False, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=member.tied, attn_implementation=member.attention,
    ))  # fmt: skip


def _bert(member: Member) -> nn.Module:
    sizes = member.sizes
    return transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=WORDS, hidden_size=sizes.width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, intermediate_size=sizes.hidden, type_vocab_size=2,
        max_position_embeddings=6, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        layer_norm_eps=EPS, pad_token_id=0, attn_implementation=member.attention,
    ))  # fmt: skip


def _decoder(member: Member) -> dict:
    """What Llama and its kin have in common."""
    sizes = member.sizes
    return {
        "vocab_size": WORDS, "hidden_size": sizes.width, "intermediate_size": sizes.hidden,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.shared, "max_position_embeddings": 8, "rms_norm_eps": EPS,
        "use_cache": False, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
        "tie_word_embeddings": member.tied, "attn_implementation": member.attention,
    }  # fmt: skip


def _llama(member: Member) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_decoder(member)))


def _mixtral(member: Member) -> nn.Module:
    options = {"num_local_experts": 3, "num_experts_per_tok": 2}
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**_decoder(member), **options)
    )


def _qwen2(member: Member) -> nn.Module:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_decoder(member)))


def _qwen3(member: Member) -> nn.Module:
    config = transformers.Qwen3Config(**_decoder(member), head_dim=member.sizes.size)
    return transformers.Qwen3ForCausalLM(config)


def _t5(member: Member, kind: str = "relu") -> nn.Module:
    sizes = member.sizes
    return transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=WORDS, d_model=sizes.width, d_kv=sizes.size, d_ff=sizes.hidden,
        num_layers=sizes.layers, num_decoder_layers=sizes.layers, num_heads=sizes.heads,
        dropout_rate=0.0, layer_norm_epsilon=EPS, use_cache=False, pad_token_id=0, eos_token_id=0,
        decoder_start_token_id=0, feed_forward_proj=kind, tie_word_embeddings=member.tied,
    ))  # fmt: skip


def _t5_gated(member: Member) -> nn.Module:
    return _t5(member, "gated-gelu")


_MAKE = {
    "ViT": _vit, "GPT-2": _gpt2, "Llama": _llama, "Mixtral": _mixtral, "BERT": _bert, "T5": _t5,
    "T5 gated": _t5_gated, "Qwen2": _qwen2, "Qwen3": _qwen3,
}  # fmt: skip
