"""What autograd's graph tells of each parameter: who uses it, and whether linearly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.autograd.function import BackwardCFunction

__all__ = ["ParameterGraph", "agreed"]

# Backward nodes that are linear in their operands together, almost everywhere.
_LINEAR = frozenset(
    """AccumulateGrad Abs Add Alias Amax Amin AsStrided AdaptiveAvgPool2D AdaptiveAvgPool3D
    AdaptiveMaxPool2D AdaptiveMaxPool3D AvgPool2D AvgPool3D Cat Chunk Clamp ClampMax ClampMin Clone
    Col2Im ConstantPadNd Cumsum Diagonal Expand Flip Gather Hardtanh HardtanhBackward Im2Col Index
    IndexSelect LeakyRelu MaskedFill Max MaxPool2DWithIndices MaxPool3DWithIndices Maximum Mean
    Median Min Minimum Narrow Neg Permute PixelShuffle PixelUnshuffle ReflectionPad1D
    ReflectionPad2D ReflectionPad3D Relu Repeat ReplicationPad1D ReplicationPad2D
    ReplicationPad3D ReshapeAlias Roll Rsub Select Slice Sort Split SplitWithSizes Squeeze Stack
    Sub Sum T Threshold ToCopy Topk Transpose Tril Triu Unbind Unfold Unsqueeze UnsafeSplit
    UnsafeView UpsampleBicubic2D UpsampleBilinear2D UpsampleLinear1D UpsampleNearest1D
    UpsampleNearest2D UpsampleNearest3D UpsampleTrilinear3D View Where""".split()
)
# Linear in each operand while the others stay.
_MULTILINEAR = frozenset(
    "Addbmm Addmm Addmv Baddbmm Bmm Convolution Dot Embedding Mm Mul Mv PreluKernel".split()
)
# The operand of these that is added, not multiplied.
_ADDED = {
    "Addbmm": 0, "Addmm": 0, "Addmv": 0, "Baddbmm": 0, "Convolution": 2, "NativeBatchNorm": 2,
    "NativeGroupNorm": 2, "NativeLayerNorm": 2,
}  # fmt: skip
# Linear in all operands but the first (a division: the second) while that one stays.
_NORMALISING = {
    "NativeLayerNorm": 0, "NativeGroupNorm": 0, "FusedRmsNorm": 0, "Div": 1,
}  # fmt: skip


class ParameterGraph:
    """The graph above some outputs, read once.

    Args:
        tensors: The outputs.
        parameters: The leaves, by name.
    """

    def __init__(self, tensors: list[Tensor], parameters: Mapping[str, Tensor]):
        names = {id(p): name for name, p in parameters.items()}
        roots = [t.grad_fn for t in tensors if t.grad_fn is not None]
        self._order = _postorder(roots)
        self.reached = frozenset(self._order)
        self._leaf = {}
        self._consumers: dict[str, list] = {name: [] for name in parameters}
        for node in self._order:
            variable = getattr(node, "variable", None)
            if variable is not None and id(variable) in names:
                self._leaf[node] = names[id(variable)]
        for node in self._order:
            for child, _ in node.next_functions:
                if child in self._leaf:
                    self._consumers[self._leaf[child]].append(node)
        self._roots = roots

    @property
    def counts(self) -> dict[str, int]:
        """How often each parameter enters the graph."""
        return {name: len(nodes) for name, nodes in self._consumers.items()}

    def uses(self, name: str) -> int:
        """How often the parameter enters the graph."""
        return len(self._consumers[name])

    def is_used_only_in(self, name: str, edge) -> bool:
        """Whether the parameter enters the graph once, and the output of a call that takes it is
        in the graph: the call is then where it enters."""
        return self.uses(name) == 1 and edge.node in self.reached

    def piecewise_linear(self) -> frozenset[str]:
        """The parameters in each of which the outputs are linear around almost every point.

        Sets of parameters are bits of integers. Unknown operations count as nonlinear.
        """
        bits = {name: 1 << i for i, name in enumerate(self._consumers)}
        below, bent = {}, 0
        for node in self._order:
            if node in self._leaf:
                below[node] = bits[self._leaf[node]]
                continue
            operands = [below.get(child, 0) for child, _ in node.next_functions]
            below[node] = _union(operands)
            bent |= _nonlinear(node, operands)
        return frozenset(name for name, bit in bits.items() if not bent & bit)

    def kinds(self) -> dict[str, str]:
        """``"Hessian"`` for the parameters whose block of the Gauss-Newton matrix is also that of
        the Hessian, else ``"Gauss-Newton"``."""
        linear = self.piecewise_linear()
        return {
            name: "Hessian" if name in linear else "Gauss-Newton"
            for name in self._consumers
        }


def agreed(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """``"Hessian"`` where two graphs of the same parameters both say so."""
    return {
        name: kind if kind == second[name] else "Gauss-Newton"
        for name, kind in first.items()
    }


def _union(sets) -> int:
    joined = 0
    for s in sets:
        joined |= s
    return joined


def _nonlinear(node, operands: list[int]) -> int:
    """The parameters in which a node is not linear."""
    if isinstance(node, BackwardCFunction):  # a user's, of whatever name
        return _union(operands)
    name = node.name().rstrip("0123456789").removesuffix("Backward")
    if name in _LINEAR or name == "torch::autograd::AccumulateGrad":
        return 0
    shared, seen = 0, 0
    for place, s in enumerate(operands):
        if place != _ADDED.get(name):
            shared, seen = shared | (seen & s), seen | s
    if name in _MULTILINEAR:
        return shared
    if name in _NORMALISING:
        place = _NORMALISING[name]
        return shared | (operands[place] if place < len(operands) else 0)
    if name == "NativeBatchNorm":
        return shared | (operands[0] if node._saved_training else 0)
    return _union(operands)


def _postorder(roots) -> list:
    """The nodes that can be reached, children first."""
    order, seen = [], set()
    stack = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child]
    return order
