"""Rules of attention: queries and keys cancel, values pass."""

from __future__ import annotations

from quotientnet.symmetry.rules.registry import rule
from quotientnet.symmetry.scales import LogScale

__all__ = []


@rule("aten::scaled_dot_product_attention")
def attention(
    call, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None,
    enable_gqa=False,
):  # fmt: skip
    """``softmax(q k + mask) v``: channel by channel, the scale of ``q`` is the inverse of ``k``'s.

    Scores are pinned, and the values of all positions that are averaged have one scale. Heads of
    queries that share a head of keys and values share its scales.
    """
    eq, query = call.equations, call.scale(query)
    key, value = call.scale(key), call.scale(value)
    if enable_gqa:
        key, value = (_for_each_query_head(x, query) for x in (key, value))
    query, key = query.map(lambda t: t.unsqueeze(-2)), key.map(
        lambda t: t.unsqueeze(-3)
    )
    eq.pin(eq.contract(query, key, [-1]))
    if isinstance(attn_mask, LogScale):
        eq.pin(attn_mask)
    return call.spread(eq.uniform(value, [-2]))


def _for_each_query_head(x: LogScale, query: LogScale) -> LogScale:
    heads = query.shape[-3] // x.shape[-3]
    return x.map(lambda t: t.repeat_interleave(heads, -3))
