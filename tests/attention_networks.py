"""Attention and what surrounds it, written by hand, with the dimensions of their groups."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from architectures import EPS, TOKENS, Architecture, Block, on, parameter
from torch import nn

WORDS = (3, 5)


class Words(Architecture):
    """A network whose inputs are words out of seven."""

    def inputs(self) -> torch.Tensor:
        """Seeded inputs, every word among them."""
        order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
        return (order % 7).view(self.shape)


def words(dimension, make):
    """Short for a network of words."""
    return Words(make, WORDS, dimension)


def whole(q, k, v, **options):
    """Attention as one operation."""
    return F.scaled_dot_product_attention(q, k, v, **options)


def explicit(q, k, v, is_causal=False):
    """Attention written out."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        scores = scores.masked_fill(
            torch.ones_like(scores[0, 0]).triu(1).bool(), -torch.inf
        )
    return scores.softmax(-1) @ v


def named(q, k, v):
    """Attention by named axes."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)


def batched(q, k, v):
    """Attention with heads in the batch."""
    shape = q.shape
    q, k, v = (t.reshape(-1, *t.shape[-2:]) for t in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(1), q, k.transpose(1, 2), beta=0, alpha=0.5)
    return torch.bmm(F.softmax(scores, -1), v).view(shape)


def biased(q, k, v):
    """Attention with a bias for each pair of heads and distances, of constants."""
    distance = torch.arange(5)[:, None] - torch.arange(5)
    return whole(q, k, v, attn_mask=-distance.abs().to(q) * 0.5)


class Attention(nn.Module):
    """Self-attention with ``heads`` of queries and ``shared`` of keys and values.

    Args:
        mix: What to do with queries, keys and values.
        width: Of the stream.
        heads: Of queries.
        shared: Of keys and values, as many by default.
        size: Of a head.
        bias: Whether projections have one.
        turn: Applied to queries and keys: a rotation of positions.
        norms: Normalisations of queries and keys.
    """

    def __init__(
        self, mix=whole, width=4, heads=2, shared=None, size=2, bias=True, turn=None, norms=None
    ):  # fmt: skip
        super().__init__()
        shared = shared or heads
        self.mix, self.size, self.turn, self.norms = mix, size, turn, norms
        self.q = nn.Linear(width, heads * size, bias=bias)
        self.k = nn.Linear(width, shared * size, bias=bias)
        self.v = nn.Linear(width, shared * size, bias=bias)
        self.o = nn.Linear(heads * size, width, bias=bias)

    def forward(self, x, memory=None):
        """Shape ``(N, positions, width)``."""
        memory = x if memory is None else memory
        q, k, v = (
            layer(y).unflatten(-1, (-1, self.size)).transpose(1, 2)
            for layer, y in ((self.q, x), (self.k, memory), (self.v, memory))
        )
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        if self.turn is not None:
            q, k = self.turn(q), self.turn(k)
        return self.o(self.mix(q, k, v).transpose(1, 2).flatten(2))


def repeated(mix):
    """Keys and values repeated for each head of queries."""

    def function(q, k, v):
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        return mix(q, k, v)

    return function


def expanded(q, k, v):
    """As :func:`repeated`, by expansion of a new axis."""
    groups = q.shape[1] // k.shape[1]
    k, v = (t[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for t in (k, v))
    return explicit(q, k, v)


def angles(x):
    """Angles of rotation by position and pair of channels."""
    speeds = 1.0 / 100.0 ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    return (torch.arange(x.shape[-2])[:, None] * speeds).to(x)


def rotated(x):
    """Channels ``j`` and ``j + d/2`` turned by an angle that grows with the position."""
    angle = torch.cat([angles(x)] * 2, -1)
    a, b = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-b, a], -1) * angle.sin()


def rotated_pairs(x):
    """Channels ``2j`` and ``2j + 1`` turned as complex numbers."""
    turn = torch.polar(torch.ones_like(angles(x)), angles(x))
    z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(z * turn).flatten(-2)


class RootMeanSquare(nn.Module):
    """Root-mean-square normalisation written out, as language models have it."""

    def __init__(self, width, offset=0.0, eps=1e-6):
        super().__init__()
        self.weight, self.offset, self.eps = parameter(width), offset, eps

    def forward(self, x):
        """Of the shape of ``x``."""
        size = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        y = x * torch.rsqrt(size + self.eps)
        return (self.weight + self.offset if self.offset else self.weight) * y.to(
            x.dtype
        )


class LayerNorm(nn.Module):
    """Layer normalisation written out, with a guard of the standard deviation."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.a, self.b, self.eps = parameter(width), parameter(width), eps

    def forward(self, x):
        """Of the shape of ``x``."""
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.a * (x - mean) / (std + self.eps) + self.b


def layer_norm(width):
    """Layer normalisation with negligible ``eps``."""
    return nn.LayerNorm(width, eps=EPS)


def gated(width, hidden, gate=F.silu):
    """``down(gate(g) u)``: ``u`` can be scaled."""
    return Block(
        lambda m, x: m.down(gate(m.gate(x)) * m.up(x)),
        gate=nn.Linear(width, hidden, bias=False), up=nn.Linear(width, hidden, bias=False),
        down=nn.Linear(hidden, width, bias=False),
    )  # fmt: skip


def feed_forward(width, hidden, activation=F.gelu):
    """Two layers."""
    return Block(
        lambda m, x: m.b(activation(m.a(x))),
        a=nn.Linear(width, hidden),
        b=nn.Linear(hidden, width),
    )


class Experts(nn.Module):
    """A mixture of three gated units, of which each token takes two.

    Args:
        bias: Whether the first layers have one.
        sort: Whether tokens are sorted by their experts, instead of weights picked for each.
    """

    def __init__(self, width=4, hidden=3, experts=3, bias=False, sort=False):
        super().__init__()
        self.router, self.sort = nn.Linear(width, experts), sort
        self.up = parameter(experts, 2 * hidden, width)
        self.bias = parameter(experts, 2 * hidden) if bias else None
        self.down = parameter(experts, width, hidden)

    def forward(self, x):
        """Shape ``(..., width)``."""
        shares, chosen = self.router(x).softmax(-1).topk(2, -1)
        shape, tokens, chosen = x.shape, x.reshape(-1, x.shape[-1]), chosen.reshape(-1)
        tokens = tokens.repeat_interleave(2, 0)
        order = chosen.argsort() if self.sort else torch.arange(len(chosen))
        chosen = chosen[order]
        h = torch.bmm(self.up[chosen], tokens[order].unsqueeze(-1)).squeeze(-1)
        h = h if self.bias is None else h + self.bias[chosen]
        gate, value = h.chunk(2, -1)
        y = torch.einsum("si,soi->so", F.silu(gate) * value, self.down[chosen])
        y = (y * shares.reshape(-1)[order, None])[order.argsort()]
        return y.view(*shape[:-1], 2, -1).sum(-2)


def pre_norm(attention, mlp, norm=layer_norm, width=4):
    """A block that adds to a stream what it makes of the normalised stream."""

    def forward(m, x):
        x = x + m.attention(m.first(x))
        return x + m.mlp(m.second(x))

    return Block(
        forward, first=norm(width), attention=attention, second=norm(width), mlp=mlp
    )


def post_norm(attention, mlp, norm=layer_norm, width=4):
    """A block that normalises the stream after adding."""

    def forward(m, x):
        x = m.first(x + m.attention(x))
        return m.second(x + m.mlp(x))

    return Block(
        forward, attention=attention, first=norm(width), mlp=mlp, second=norm(width)
    )


def language_model(*blocks, norm, tied=False, width=4):
    """Words to a stream, blocks, a last normalisation, scores of words."""
    embed, head = nn.Embedding(7, width), nn.Linear(width, 7, bias=False)
    if tied:
        head.weight = embed.weight
    return nn.Sequential(embed, *blocks, norm(width), head)


def read(network):
    """Tokens through a network and a linear layer."""
    return nn.Sequential(network, nn.Linear(4, 2))


ATTENTION = {
    # four channels of queries and keys, and four of values
    "whole": on(TOKENS, 8, Attention),
    "whole, causal": on(TOKENS, 8, lambda: Attention(
        lambda q, k, v: whole(q, k, v, is_causal=True))),
    "whole, without biases": on(TOKENS, 8, lambda: Attention(bias=False)),
    "explicit": on(TOKENS, 8, lambda: Attention(explicit)),
    "explicit, causal": on(TOKENS, 8, lambda: Attention(lambda q, k, v: explicit(q, k, v, True))),
    "explicit, without biases": on(TOKENS, 8, lambda: Attention(explicit, bias=False)),
    "by named axes": on(TOKENS, 8, lambda: Attention(named)),
    "by batches": on(TOKENS, 8, lambda: Attention(batched)),
    "with a bias of distances": on(TOKENS, 8, lambda: Attention(biased)),
    "of another sequence": on(TOKENS, 8, lambda: Block(
        lambda m, x: m.a(x[:, :2], x), a=Attention())),
    "torch's own": on(TOKENS, 8, lambda: Block(
        lambda m, x: m.a(x, x, x, need_weights=False)[0],
        a=nn.MultiheadAttention(4, 2, batch_first=True))),
    "torch's own with weights": on(TOKENS, 8, lambda: Block(
        lambda m, x: m.a(x, x, x), a=nn.MultiheadAttention(4, 2, batch_first=True))),
    "queries that are parameters": on(TOKENS, 8, lambda: Block(
        lambda m, x: m.o(whole(m.q, m.k(x), m.v(x))), q=parameter(3, 2, 4), k=nn.Linear(4, 4),
        v=nn.Linear(4, 4), o=nn.Linear(4, 2))),
    # four heads of queries, two of keys and values, two channels each
    "shared": on(TOKENS, 8, lambda: Attention(
        lambda q, k, v: whole(q, k, v, enable_gqa=True), heads=4, shared=2)),
    "shared, repeated": on(TOKENS, 8, lambda: Attention(repeated(whole), heads=4, shared=2)),
    "shared, expanded": on(TOKENS, 8, lambda: Attention(expanded, heads=4, shared=2)),
    "shared by all": on(TOKENS, 4, lambda: Attention(repeated(explicit), heads=4, shared=1)),
    # two heads of four channels: pairs of channels of queries and keys, eight channels of values
    "rotary": on(TOKENS, 12, lambda: Attention(size=4, turn=rotated)),
    "rotary, explicit": on(TOKENS, 12, lambda: Attention(explicit, size=4, turn=rotated)),
    "rotary, complex": on(TOKENS, 12, lambda: Attention(size=4, turn=rotated_pairs)),
    "rotary, shared": on(TOKENS, 6, lambda: Attention(
        repeated(whole), shared=1, size=4, turn=rotated)),
    # one for each head of queries and of keys, one for each channel of the norms' weights
    "normalised queries and keys": on(TOKENS, 2 + 2 + 2 + 4, lambda: Attention(
        norms=nn.ModuleList([nn.RMSNorm(2, eps=EPS), nn.RMSNorm(2, eps=EPS)]))),
    "layer-normalised queries and keys": on(TOKENS, 2 + 2 + 3 + 6, lambda: Attention(
        size=3, norms=nn.ModuleList([layer_norm(3), layer_norm(3)]))),
    "normalised queries and keys, rotary": on(TOKENS, 2 + 1 + 2 + 4, lambda: Attention(
        repeated(explicit), shared=1, size=4, turn=rotated,
        norms=nn.ModuleList([RootMeanSquare(4), RootMeanSquare(4)]))),
    "queries and keys of norm 1": on(TOKENS, 2 + 2 + 4, lambda: Attention(
        norms=[lambda q: F.normalize(q, dim=-1), lambda k: F.normalize(k, dim=-1)])),
    # the stream, two norms and the last one, attention
    "pre-norm": on(TOKENS, 1 + 3 * 4 + 8, lambda: nn.Sequential(
        nn.Linear(4, 4), pre_norm(Attention(), feed_forward(4, 6)), layer_norm(4),
        nn.Linear(4, 2))),
    "pre-norm, with ReLU": on(TOKENS, 1 + 3 * 4 + 8 + 6, lambda: nn.Sequential(
        nn.Linear(4, 4), pre_norm(Attention(), feed_forward(4, 6, F.relu)), layer_norm(4),
        nn.Linear(4, 2))),
    # what the first norm sees, and then a common scale of what each of the two norms sees
    "post-norm": on(TOKENS, 3 + 8 + 4, lambda: nn.Sequential(
        nn.Linear(4, 4), layer_norm(4), post_norm(Attention(), feed_forward(4, 6)),
        nn.Linear(4, 2))),
    "torch's own block": on(TOKENS, 2 + 8 + 4, lambda: Block(
        lambda m, x: m.o(m.a(m.i(x))), i=nn.Linear(4, 4), o=nn.Linear(4, 2),
        a=nn.TransformerEncoderLayer(
            4, 2, 6, 0.0, F.gelu, layer_norm_eps=EPS, batch_first=True))),
    "written-out layer normalisation": on(TOKENS, 1 + 3 * 4 + 8, lambda: nn.Sequential(
        nn.Linear(4, 4), pre_norm(Attention(explicit), feed_forward(4, 6), LayerNorm),
        LayerNorm(4), nn.Linear(4, 2))),
    # words
    "gpt": words(1 + 3 * 4 + 8, lambda: language_model(
        pre_norm(Attention(), feed_forward(4, 6)), norm=layer_norm)),
    "gpt, tied": words(1 + 2 * 4 + 8, lambda: language_model(
        pre_norm(Attention(), feed_forward(4, 6)), norm=layer_norm, tied=True)),
    "llama": words(1 + 3 * 4 + 2 + 4 + 3, lambda: language_model(
        pre_norm(
            Attention(repeated(whole), shared=1, size=4, bias=False, turn=rotated),
            gated(4, 3), RootMeanSquare),
        norm=RootMeanSquare)),
    "gemma": words(1 + 2 + 4 + 3, lambda: language_model(
        pre_norm(
            Attention(repeated(whole), shared=1, size=4, bias=False, turn=rotated),
            gated(4, 3, F.gelu), lambda width: RootMeanSquare(width, 1.0)),
        norm=lambda width: RootMeanSquare(width, 1.0))),
    # gates
    "gated unit": on(TOKENS, 3, lambda: gated(4, 3)),
    "gated unit, fused": on(TOKENS, 3, lambda: Block(
        lambda m, x: (lambda g, u: m.b(F.silu(g) * u))(*m.a(x).chunk(2, -1)),
        a=nn.Linear(4, 6), b=nn.Linear(3, 2))),
    "glu": on(TOKENS, 3, lambda: nn.Sequential(nn.Linear(4, 6), nn.GLU(), nn.Linear(3, 2))),
    "gated by ReLU": on(TOKENS, 6, lambda: gated(4, 3, F.relu)),
    "experts": on(TOKENS, 9, Experts),
    "experts with biases": on(TOKENS, 9, lambda: Experts(bias=True)),
    "experts, sorted": on(TOKENS, 9, lambda: Experts(sort=True)),
    "experts in a stream": on(TOKENS, 1 + 3 * 4 + 8 + 9, lambda: nn.Sequential(
        nn.Linear(4, 4), pre_norm(Attention(), Experts(bias=True)), layer_norm(4),
        nn.Linear(4, 2))),
    # seven words, each with a scale of its own where the first thing is a normalisation
    "normalised words": words(7 + 4, lambda: language_model(norm=layer_norm)),
    "normalised words, written out": words(7 + 4, lambda: language_model(norm=RootMeanSquare)),
    "normalised projected words": words(7 + 3 + 4, lambda: nn.Sequential(
        nn.Embedding(7, 3), nn.Linear(3, 4, bias=False), nn.RMSNorm(4, eps=EPS),
        nn.Linear(4, 2))),
    "experts, all of them": on(TOKENS, 9, lambda: Block(
        lambda m, x: (m.router(x).softmax(-1)[..., None] * torch.stack(
            [e(x) for e in m.experts], -2)).sum(-2),
        router=nn.Linear(4, 3), experts=nn.ModuleList([gated(4, 3) for _ in range(3)]))),
}  # fmt: skip
