"""Operations that are not homogeneous: they pin what they read and write, each with its reason."""

from __future__ import annotations

from collections.abc import Callable

from quotientnet.symmetry.rules.registry import rule

__all__ = ["pinned", "CURVES"]


def pinned(names: str, reason: str) -> Callable:
    """Register operations that pin all they touch, in aten, with the reason in a few words."""

    def pinning(call, *args, **kwargs):
        return call.pin(*args, *kwargs.values())

    pinning.__doc__ = reason
    return rule(*(f"aten::{name}" for name in names.split()))(pinning)


CURVES = {
    "A curve that bends at a fixed place: not homogeneous.": (
        "gelu silu mish hardswish elu selu celu softplus softsign sigmoid tanh hardsigmoid "
        "hardtanh relu6 log_sigmoid logsigmoid tanhshrink erf erfc special_expit special_ndtr "
        "special_log_ndtr special_erfcx sinc asinh atan sinh cosh asin acos acosh atanh tan sin "
        "cos special_i0 i0 special_i0e special_i1 special_i1e"
    ),
    "A threshold at a fixed place: not homogeneous.": "softshrink hardshrink",
    "An exponential turns a factor into a power: not homogeneous.": (
        "exp exp2 expm1 sigmoid_backward special_entr"
    ),
    "A logarithm turns a factor into an offset: not homogeneous.": (
        "log log1p log2 log10 logit xlogy special_xlogy special_xlog1py lgamma digamma polygamma "
        "erfinv special_ndtri mvlgamma special_logit"
    ),
    "Rounds to a fixed grid.": "round floor ceil trunc fix frac fmod remainder floor_divide",
}
"""Functions of single entries, by the reason why they pin."""

for _reason, _names in CURVES.items():
    pinned(_names, _reason)
pinned(
    "frexp bucketize searchsorted fake_quantize_per_tensor_affine "
    "fake_quantize_per_channel_affine quantize_per_tensor quantize_per_channel",
    "Rounds to a fixed grid.",
)
pinned(
    "softmax _softmax log_softmax _log_softmax logsumexp logcumsumexp logaddexp logaddexp2 "
    "_safe_softmax",
    "Sums of exponentials: of scores the differences count, and their size.",
)
pinned(
    "bernoulli multinomial poisson binomial rrelu_with_noise",
    "Probabilities of random draws: their size counts.",
)
pinned("renorm", "Compares a norm with a fixed one.")
pinned("resize_as_ resize_", "Memory of another size: what it holds is not known.")
pinned(
    "binary_cross_entropy binary_cross_entropy_with_logits kl_div cross_entropy_loss "
    "poisson_nll_loss gaussian_nll_loss ctc_loss _ctc_loss linear_cross_entropy",
    "A likelihood: of scores the size counts.",
)
pinned(
    "huber_loss smooth_l1_loss hinge_embedding_loss multi_margin_loss multilabel_margin_loss "
    "soft_margin_loss triplet_margin_loss",
    "A loss with a margin or a bend at a fixed distance.",
)
pinned("cosine_embedding_loss", "A constant is added to each length.")
