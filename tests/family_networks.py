"""A block of each family that people train, by hand, with the dimensions of their groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from architectures import TOKENS, Block, on, parameter
from attention_networks import (
    Attention,
    Experts,
    RootMeanSquare,
    explicit,
    feed_forward,
    gated,
    language_model,
    layer_norm,
    post_norm,
    pre_norm,
    repeated,
    rotated,
    whole,
    words,
)
from torch import nn


def vision(*blocks, width=4):
    """Patches behind a token of their own, with learned positions; the token is read."""

    def forward(m, x):
        h = m.patches(x)
        h = torch.cat([m.token.expand(len(h), 1, width), h], 1) + m.positions
        return m.head(m.last(m.blocks(h))[:, 0])

    return Block(
        forward, patches=nn.Linear(4, width), token=parameter(1, 1, width),
        positions=parameter(6, width), blocks=nn.Sequential(*blocks), last=layer_norm(width),
        head=nn.Linear(width, 2),
    )  # fmt: skip


def bidirectional(block, width=4):
    """Words, positions and kinds of segments, normalised, a block, and scores."""

    def forward(m, words):
        h = m.words(words) + m.positions.weight + m.kinds(torch.zeros_like(words))
        return m.head(m.block(m.first(h)))

    return Block(
        forward, words=nn.Embedding(7, width), positions=nn.Embedding(5, width),
        kinds=nn.Embedding(2, width), first=layer_norm(width), block=block,
        head=nn.Linear(width, 2),
    )  # fmt: skip


def by_distance(table):
    """Attention without a factor, and with a learned bias for each distance and head."""

    def mix(q, k, v):
        places = torch.arange(q.shape[-2])[:, None] - torch.arange(k.shape[-2])
        bias = table[places.clamp(-2, 2) + 2].permute(2, 0, 1)
        return (q @ k.transpose(-1, -2) + bias).softmax(-1) @ v

    return mix


def translator(tied):
    """An encoder and a decoder of words, the same table for both, and for scores on request."""

    def add(m, name, h, *memory):
        return h + m[name](m[f"{name}_norm"](h), *memory)

    def forward(m, words):
        h, y = m.words(words), m.words(words.flip(0)[:, :3])
        h = add(m.inside, "feed", add(m.inside, "self", h))
        memory = m.end(h)
        y = add(m.outside, "other", add(m.outside, "self", y), memory)
        y = m.last(add(m.outside, "feed", y))
        return F.linear(y, m.words.weight if tied else m.head.weight)

    biases = nn.ParameterList([parameter(5, 2), parameter(5, 2)])

    def part(number, **more):
        members = {
            "self": Attention(by_distance(biases[number]), bias=False),
            "feed": nn.Sequential(
                nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 4, bias=False)
            ),
        } | more
        norms = {f"{name}_norm": RootMeanSquare(4) for name in members}
        return nn.ModuleDict(members | norms)

    return Block(
        forward, words=nn.Embedding(7, 4), biases=biases, inside=part(0), end=RootMeanSquare(4),
        outside=part(1, other=Attention(explicit, bias=False)), last=RootMeanSquare(4),
        head=nn.Linear(4, 7, bias=False),
    )  # fmt: skip


def rotary_attention(**options):
    """Two heads of four channels that share keys and values."""
    return Attention(repeated(whole), shared=1, size=4, turn=rotated, **options)


FAMILY_BLOCKS = {
    "qwen2": words(1 + 3 * 4 + 2 + 4 + 3, lambda: language_model(
        pre_norm(rotary_attention(), gated(4, 3), RootMeanSquare), norm=RootMeanSquare)),
    "qwen2, tied": words(1 + 2 * 4 + 2 + 4 + 3, lambda: language_model(
        pre_norm(rotary_attention(), gated(4, 3), RootMeanSquare), norm=RootMeanSquare,
        tied=True)),
    # each head of queries and of keys, pairs of their weights, values, the gated unit
    "qwen3": words(1 + 3 * 4 + 3 + 2 + 4 + 3, lambda: language_model(
        pre_norm(
            rotary_attention(bias=False, norms=nn.ModuleList(
                [RootMeanSquare(4), RootMeanSquare(4)])),
            gated(4, 3), RootMeanSquare),
        norm=RootMeanSquare)),
    "mixtral": words(1 + 3 * 4 + 2 + 4 + 3 * 3, lambda: language_model(
        pre_norm(rotary_attention(bias=False), Experts(sort=True), RootMeanSquare),
        norm=RootMeanSquare)),
    "vit": on(TOKENS, 1 + 2 * (2 * 4 + 8) + 4, lambda: vision(
        *(pre_norm(Attention(), feed_forward(4, 6)) for _ in range(2)))),
    "bert": words(3 + 8 + 4, lambda: bidirectional(post_norm(Attention(), feed_forward(4, 6)))),
    # the stream, norms, three attentions, ReLU
    "t5": words(1 + 7 * 4 + 3 * 8 + 2 * 3, lambda: translator(False)),
    "t5, tied": words(1 + 6 * 4 + 3 * 8 + 2 * 3, lambda: translator(True)),
}  # fmt: skip
