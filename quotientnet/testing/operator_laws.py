"""Laws of symmetric operators."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from quotientnet.operator import Operator, require_operator
from quotientnet.options import require_seed
from quotientnet.testing.laws import Verdict, check_laws, registry, worst

__all__ = ["OPERATOR_LAWS", "OperatorSample", "check_operator"]

OPERATOR_LAWS = {}
law = registry(OPERATOR_LAWS)


@dataclass(frozen=True)
class OperatorSample:
    """An operator and random vectors of norm 1.

    Attributes:
        operator: The operator.
        seed: Of the vectors.
    """

    operator: Operator
    seed: int = 0

    def __str__(self) -> str:
        kind = type(self.operator).__name__
        return f"{kind} of size {self.operator.size}, {self.dtype}"

    @property
    def dtype(self) -> torch.dtype:
        """That of the operator."""
        return self.operator.dtype

    @cached_property
    def block(self) -> Tensor:
        """Three vectors, one a column."""
        device = self.operator.device
        generator = torch.Generator(device).manual_seed(self.seed)
        options = {"dtype": self.dtype, "device": device, "generator": generator}
        block = torch.randn(self.operator.size, 3, **options)
        return block / block.norm(dim=0)

    @cached_property
    def images(self) -> Tensor:
        """Their products, one vector at a time."""
        return torch.stack(
            [self.operator @ v.contiguous() for v in self.block.T], dim=1
        )

    def gap(self, a: Tensor, b: Tensor) -> Tensor:
        """How much two results differ, relative to the products of the sample."""
        tiny = torch.finfo(self.dtype).tiny
        return (a - b).norm() / self.images.norm().clamp(min=tiny)


def check_operator(operator: Operator, *, seed: int = 0) -> list[Verdict]:
    """Every law of operators, by ten products.

    Args:
        operator: An :class:`~quotientnet.operator.Operator`, of float32 or float64.
        seed: Of the vectors.

    Raises:
        TypeError: It is none, or ``seed`` no integer.
        ValueError: ``seed`` is out of range.
    """
    require_operator(operator, "check_operator")
    sample = OperatorSample(operator, require_seed(seed, "check_operator"))
    return check_laws(OPERATOR_LAWS.values(), [sample], lambda law, sample: True)


@law(double=1e-9, single=1e-4)
def operator_is_symmetric(s):
    """``⟨a, H b⟩ = ⟨H a, b⟩``."""
    table = s.block.T @ s.images
    return s.gap(table, table.T)


@law(double=1e-9, single=1e-4)
def operator_is_linear(s):
    """``H(2 a − b) = 2 H a − H b``."""
    (a, b, _), (ha, hb, _) = s.block.T, s.images.T
    return s.gap(s.operator @ (2 * a - b), 2 * ha - hb)


@law(double=1e-9, single=1e-4)
def operator_on_a_block_is_columns(s):
    """A product with a block is the products with its columns, whatever its strides, and an empty
    block gives an empty one."""
    block, operator = s.block, s.operator
    strided = block.T.contiguous().T
    if (operator @ block[:, :0]).shape != (operator.size, 0):
        return torch.inf
    return worst(s.gap(operator @ block, s.images), s.gap(operator @ strided, s.images))


@law(double=1e-12, single=1e-5)
def operator_repeats_itself(s):
    """Two products with one vector are equal."""
    return s.gap(s.operator @ s.block[:, 0].contiguous(), s.images[:, 0])


@law(double=0.0, single=0.0)
def operator_leaves_its_argument_alone(s):
    """The vector is not written to, nor is the result a view of it."""
    v = s.block[:, 1].clone()
    product = s.operator @ v
    shared = product.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    return torch.inf if shared else float((v - s.block[:, 1]).abs().max())


@law(double=0.0, single=0.0)
def operator_keeps_shape_and_dtype(s):
    """A product has the shape, dtype and device of the vector, and no graph; a vector of another
    length or dtype is refused."""
    operator, v = s.operator, s.block[:, 0].clone()
    product = operator @ v
    same = (product.shape, product.dtype, product.device) == (
        v.shape,
        v.dtype,
        v.device,
    )
    other = torch.float32 if v.dtype == torch.float64 else torch.float64
    refused = all(_refuses(operator, wrong) for wrong in (v[1:], v.to(other)))
    return 0.0 if same and refused and not product.requires_grad else torch.inf


@law(double=1e-8, single=1e-3)
def known_null_directions_are_null(s):
    """What :meth:`~quotientnet.Operator.project` takes away, the operator sends to zero; it takes
    it away once, and no product has any of it."""
    operator, v = s.operator, s.block[:, 0]
    kept = operator.project(v.clone())
    return worst(
        s.gap(operator @ (v - kept), 0 * v),
        s.gap(operator.project(s.images[:, 0].clone()), s.images[:, 0]),
        (operator.project(kept.clone()) - kept).norm(),
    )


def _refuses(operator: Operator, v: Tensor) -> bool:
    try:
        operator @ v
    except ValueError:
        return True
    return False
