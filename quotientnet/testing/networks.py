"""Random networks that are no chains: branches, products, shared layers, pinned channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "quotientnet.testing.networks needs hypothesis: pip install quotientnet[test]"
    ) from error

__all__ = ["DrawnNetwork", "Step", "networks"]

_UNARY = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "abs": torch.abs,
    "neg": torch.neg,
    "double": lambda x: 2.0 * x,
    "square": torch.square,
    "plus_one": lambda x: x + 1.0,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "max_pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "avg_pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "flip": lambda x: x.flip(1),
    "shuffle": lambda x: F.channel_shuffle(x, 2) if x.shape[1] % 2 == 0 else x,
    "squeeze": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "halves": lambda x: torch.cat([x[:, 1:], F.relu(x[:, :1])], 1),
    "zeros": lambda x: F.pad(x[:, 1:], (0, 0, 0, 0, 0, 1)),
}
_BINARY = {
    "add": torch.add,
    "mul": torch.mul,
    "maximum": torch.maximum,
    "cat": lambda x, y: torch.cat([x, y], 1),
    "gate": lambda x, y: x * torch.sigmoid(y),
}


@dataclass(frozen=True)
class Step:
    """One step of a drawn network: what it does, to the results of which earlier steps.

    Attributes:
        operation: A name: of a function, or of a layer of the network.
        inputs: Numbers of earlier results; 0 is the first layer's.
    """

    operation: str
    inputs: tuple[int, ...]


class DrawnNetwork(nn.Module):
    """A network given by its steps, on images of shape ``(N, 2, 4, 4)`` with three outputs."""

    def __init__(self, layers: dict[str, nn.Module], steps: tuple[Step, ...]):
        super().__init__()
        self.layers, self.steps = nn.ModuleDict(layers), steps

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, shape ``(N, 3)``."""
        results = [self.layers["first"](x)]
        for step in self.steps:
            results.append(
                self._result(step.operation, [results[i] for i in step.inputs])
            )
        return self.layers["last"](results[-1].mean((2, 3)))

    def _result(self, operation: str, inputs: list[Tensor]) -> Tensor:
        if operation in _UNARY:
            return _UNARY[operation](*inputs)
        if operation in _BINARY:
            return _BINARY[operation](*inputs)
        if operation.startswith("transposed_"):
            weight = self.layers[operation.removeprefix("transposed_")].weight
            return F.conv2d(*inputs, weight.transpose(0, 1).flip(2, 3), padding="same")
        return self.layers[operation](*inputs)

    def extra_repr(self) -> str:
        """The steps."""
        return "\n".join(map(str, self.steps))


@st.composite
def networks(draw, max_steps: int = 6, max_width: int = 4, dtype=torch.float64):
    """A network with branches, products, concatenations, shared and tied layers, and pins.

    Normalisations have an ``eps`` so small that their symmetry is exact. Nothing is zero.

    Returns:
        The :class:`DrawnNetwork`, in train or eval mode; it takes ``(N, 2, 4, 4)``.
    """
    layers = {"first": nn.Conv2d(2, draw(st.integers(1, max_width)), 1)}
    widths, steps = [layers["first"].out_channels], []
    # What is multiplied by a constant zero pins without an effect: never both in one network.
    banned = draw(st.sampled_from([{"zeros"}, {"tanh", "sigmoid", "plus_one", "gate"}]))
    for number in range(draw(st.integers(0, max_steps))):
        steps.append(_step(draw, layers, widths, f"layer{number}", max_width, banned))
    layers["last"] = nn.Linear(widths[-1], 3)
    network = DrawnNetwork(layers, tuple(steps)).to(dtype)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=dtype)
            parameter.copy_(noise + 0.1 * noise.sign())
    return network.train(draw(st.booleans()))


def _step(
    draw, layers: dict, widths: list[int], name: str, max_width: int, banned: set
) -> Step:
    """Draw a step, and the layer it needs; appends the number of its channels."""
    source = draw(st.integers(max(len(widths) - 3, 0), len(widths) - 1))
    width = widths[source]
    alike = [i for i, w in enumerate(widths) if w == width]
    shared = [
        key
        for key, layer in layers.items()
        if isinstance(layer, nn.Conv2d)
        and layer.in_channels == width
        and key != "first"
    ]
    tied = [
        key
        for key, layer in layers.items()
        if isinstance(layer, nn.Conv2d)
        and layer.out_channels == width
        and layer.groups == 1
        and key != "first"
    ]
    kinds = ["conv", "conv", "conv", "unary", "unary", "norm", "add", "mul", "cat"]
    kinds += ["maximum", "gate"] + ["shared"] * bool(shared) + ["tied"] * bool(tied)
    kind = draw(st.sampled_from([kind for kind in kinds if kind not in banned]))
    if kind == "unary":
        widths.append(width)
        return Step(draw(st.sampled_from(sorted(set(_UNARY) - banned))), (source,))
    if kind in _BINARY:
        other = draw(st.sampled_from(alike if kind != "cat" else range(len(widths))))
        widths.append(width + widths[other] if kind == "cat" else width)
        return Step(kind, (source, other))
    if kind == "shared":
        key = draw(st.sampled_from(shared))
        widths.append(layers[key].out_channels)
        return Step(key, (source,))
    if kind == "tied":
        key = draw(st.sampled_from(tied))
        widths.append(layers[key].in_channels)
        return Step(f"transposed_{key}", (source,))
    if kind == "norm":
        affine = draw(st.booleans())
        layers[name] = nn.BatchNorm2d(width, eps=1e-30, affine=affine)
        widths.append(width)
        return Step(name, (source,))
    groups = draw(st.sampled_from([g for g in range(1, width + 1) if width % g == 0]))
    out = groups * draw(st.integers(1, max(max_width // groups, 1)))
    size = draw(st.sampled_from([1, 3]))
    layers[name] = nn.Conv2d(
        width, out, size, padding=size // 2, groups=groups, bias=draw(st.booleans())
    )
    widths.append(out)
    return Step(name, (source,))
