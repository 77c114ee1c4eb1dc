"""What a loss divides its sum by, so that the batches of a loader add up exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "NormalisedCrossEntropy",
    "normaliser",
    "divisor",
    "require_classes",
    "output_invariances",
    "refuse_linear",
    "require_curved",
]

_BY_ELEMENT = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss, nn.PoissonNLLLoss, nn.GaussianNLLLoss,
)  # fmt: skip
_FUNCTIONS = {
    F.cross_entropy: nn.CrossEntropyLoss(), F.nll_loss: nn.NLLLoss(), F.mse_loss: nn.MSELoss(),
    F.l1_loss: nn.L1Loss(), F.smooth_l1_loss: nn.SmoothL1Loss(), F.huber_loss: nn.HuberLoss(),
    F.binary_cross_entropy: nn.BCELoss(),
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss(),
}  # fmt: skip


def normaliser(loss, outputs: Tensor, targets: Tensor) -> Tensor | float | None:
    """The number by which ``loss(outputs, targets)`` has been divided; None for a plain sum.

    The loss of a whole loader is then ``Σ loss·normaliser / Σ normaliser`` over batches, or
    ``Σ loss``, whatever their sizes. A loss with a method ``normaliser(outputs, targets)`` speaks
    for itself; torch's own losses are known, with class weights, ``ignore_index`` and
    ``reduction``; any other callable is taken as a mean over the samples of the batch.

    Args:
        loss: The loss function or module.
        outputs: What the model returned for the batch.
        targets: The batch's targets.

    Returns:
        The number of samples or of elements, or the sum of class weights; None for a sum.
    """
    if hasattr(loss, "normaliser"):
        return loss.normaliser(outputs, targets)
    known = next((module for f, module in _FUNCTIONS.items() if loss is f), loss)
    if getattr(known, "reduction", None) == "sum":
        return None
    if isinstance(known, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return (
            None if known.reduction == "sum" else _class_weight(known, outputs, targets)
        )
    if isinstance(known, _BY_ELEMENT):
        return float(outputs.numel())
    return float(len(targets) if hasattr(targets, "__len__") else len(outputs))


def require_classes(loss, outputs, targets) -> None:
    """Refuse labels that are no class of the outputs, for torch's losses of classes.

    Raises:
        ValueError: A label is negative or too large, and not the loss's ``ignore_index``.
    """
    known = next((module for f, module in _FUNCTIONS.items() if loss is f), loss)
    if not isinstance(known, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return
    tensors = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
    if not tensors or targets.is_floating_point() or not outputs.ndim:
        return
    classes = outputs.shape[1 if outputs.ndim > 1 else 0]
    wrong = (targets < 0) | (targets >= classes)
    wrong &= targets != known.ignore_index
    if wrong.any():
        label = int(targets[wrong].flatten()[0])
        raise ValueError(
            f"Objective: {int(wrong.sum())} targets are no class of the outputs, such as {label}: "
            f"the model has {classes} classes, 0 to {classes - 1}; correct the labels or the "
            "model's last layer, or pass a loss with ignore_index"
        )


def divisor(weights: list) -> Tensor | float:
    """What the sum over batches is divided by: 1 for losses that are sums.

    Raises:
        ValueError: No batch, or no target that counts.
    """
    if not weights or (weights[0] is not None and float(sum(weights)) == 0):
        what = "targets that count" if weights else "batches"
        raise ValueError(
            f"Objective: data has no {what}; the loss of nothing is undefined"
        )
    return 1.0 if weights[0] is None else sum(weights)


def _class_weight(loss, outputs: Tensor, targets: Tensor) -> Tensor | float:
    """The total weight of the targets that count."""
    if targets.is_floating_point():  # class probabilities: a mean over positions
        return float(outputs.numel() / outputs.shape[1 if outputs.ndim > 1 else 0])
    counted = targets != loss.ignore_index
    if loss.weight is None:
        return counted.sum().to(outputs.dtype)
    return (loss.weight[targets.masked_fill(~counted, 0)] * counted).sum()


def output_invariances(loss) -> tuple[str, ...]:
    """Which of ``"output scale"`` and ``"output shift"``, of a sample's logits, a loss ignores."""
    if isinstance(loss, NormalisedCrossEntropy):
        return "output scale", "output shift"
    if type(loss) is nn.CrossEntropyLoss or loss is F.cross_entropy:
        return ("output shift",)
    return ()


_LINEAR = (nn.NLLLoss, nn.L1Loss, nn.KLDivLoss)


def require_curved(loss) -> None:
    """Refuse a loss of torch's that is linear in the outputs.

    Raises:
        ValueError: It is.
    """
    if isinstance(loss, _LINEAR) or loss in (F.nll_loss, F.l1_loss, F.kl_div):
        refuse_linear()


def refuse_linear():
    """Say that the Gauss-Newton matrix is zero, and what to do.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        "ggn: the loss has no second derivative in the outputs, so its Gauss-Newton matrix is "
        "zero; move the nonlinearity into the loss (nn.CrossEntropyLoss on logits for nn.NLLLoss "
        "on log-probabilities; a cross-entropy needs two classes or more)"
    )


class NormalisedCrossEntropy(nn.Module):
    r"""The cross-entropy of logits in units of their standard deviation over the classes.

    .. math:: \ell(z, y) = -\ln \operatorname{softmax}(z')_y, \qquad
              z' = \frac{z}{\sqrt{\frac1K \sum_i (z_i - \mu)^2}}, \qquad
              \mu = \frac1K \sum_i z_i

    Eqs. (20)–(22) of [Tsuzuku2019]_, the loss at which the paper measures sharpness: it does not
    change when the logits of a sample are shifted, or scaled by a positive factor, as its accuracy
    does not. Not convex: its second derivative in the logits has eigenvalues of both signs. Of two
    classes it only sees which is larger, so that it has no derivative: take three or more.

    Args:
        weight: A weight for each class, shape ``(classes,)``.
        ignore_index: Targets that do not count.
        reduction: ``"mean"``, by the weights of the targets that count, or ``"sum"``.

    Raises:
        ValueError: Another reduction; in the call, a sample whose logits are all equal, or logits
            without an axis of two or more classes.

    Example:
        >>> import torch
        >>> loss = NormalisedCrossEntropy()
        >>> logits = torch.tensor([[1.0, 3.0]]).double()
        >>> round(loss(logits, torch.tensor([1])).item(), 6)
        0.126928
        >>> round(loss(100 * logits + 7, torch.tensor([1])).item(), 6)
        0.126928
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ):
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(
                f"NormalisedCrossEntropy: reduction must be 'mean' or 'sum', got {reduction!r}"
            )
        self.ignore_index, self.reduction = ignore_index, reduction
        self.register_buffer("weight", weight)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of logits, shape ``(samples, classes, ...)``, a scalar."""
        axis = 1 if outputs.ndim > 1 else 0
        if outputs.shape[axis] < 2:
            raise ValueError(
                "NormalisedCrossEntropy: needs logits of two classes or more, got shape "
                f"{tuple(outputs.shape)}"
            )
        half = outputs.dtype in (torch.float16, torch.bfloat16)
        logits = outputs.float() if half else outputs
        tiny = torch.finfo(logits.dtype).tiny
        # Scaled by a power of two, exactly, so that squares neither overflow nor vanish.
        size = logits.detach().abs().amax(axis, keepdim=True)
        logits = logits * torch.exp2(-torch.log2(size.clamp(min=tiny)).round())
        centred = logits - logits.mean(axis, keepdim=True)
        variance = centred.square().mean(axis, keepdim=True)
        constant = variance.detach() <= (4 * torch.finfo(logits.dtype).eps) ** 2
        if not targets.is_floating_point():
            ignored = (targets == self.ignore_index).unsqueeze(axis)
            variance = torch.where(
                constant & ignored, torch.ones_like(variance), variance
            )
            constant = constant & ~ignored
        _refuse_constant(constant)
        weight = None if self.weight is None else self.weight.to(logits)
        value = F.cross_entropy(
            centred / variance.sqrt(),
            targets,
            weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )
        return value.to(outputs.dtype)

    def normaliser(self, outputs: Tensor, targets: Tensor) -> Tensor | float | None:
        """What the sum over samples has been divided by, None for a sum."""
        if self.reduction == "sum":
            return None
        return _class_weight(self, outputs, targets)


def _refuse_constant(constant: Tensor) -> None:
    """Refuse logits without a standard deviation, but where values cannot be looked at: under
    ``vmap`` and in recorded programs, in which the loss is then NaN."""
    try:
        count = int(constant.sum())
    except RuntimeError:
        return
    if count:
        raise ValueError(
            f"NormalisedCrossEntropy: {count} of {constant.numel()} samples have one logit for "
            "all classes, which has no standard deviation; is the last layer zero, or its input?"
        )
