"""Networks of every kind that ``discover`` has to get right, with their dimensions by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import quotientnet as qn
from quotientnet.symmetry.discover import call_arguments

EPS = 1e-30
"""Of normalisations: so small that their symmetry is exact. Train mode refuses 0."""

VECTORS, IMAGES, TOKENS = (6, 4), (4, 2, 8, 8), (3, 5, 4)


class Block(nn.Module):
    """A forward given as a function of the module and its inputs."""

    def __init__(self, forward: Callable, **members):
        super().__init__()
        self.function = forward
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *inputs):
        """Whatever the function says."""
        return self.function(self, *inputs)


def parameter(*shape):
    """A random parameter."""
    return nn.Parameter(torch.randn(shape))


def dense(*widths):
    """Linear layers with ReLU between them."""
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def conv(a, b, size=3, stride=1, padding=None, **options):
    """A convolution that keeps the size."""
    padding = size // 2 if padding is None else padding
    return nn.Conv2d(a, b, size, stride, padding, **options)


def norm(channels, dims=2, **options):
    """Batch normalisation with negligible ``eps``."""
    kind = nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d
    return kind(channels, eps=EPS, **options)


def head(channels, outputs=2):
    """Global average pooling and a linear layer."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs)
    )


def residual_block(a, b, stride=1, normalised=True):
    """The basic block of a residual network, with in-place operations."""
    make = norm if normalised else (lambda channels: nn.Identity())
    shortcut = nn.Identity()
    if stride != 1 or a != b:
        shortcut = nn.Sequential(conv(a, b, 1, stride, bias=False), make(b))

    def forward(m, x):
        y = m.second(m.relu(m.first(x)))
        y += m.shortcut(x)
        return m.relu(y)

    return Block(
        forward,
        first=nn.Sequential(conv(a, b, stride=stride, bias=not normalised), make(b)),
        second=nn.Sequential(conv(b, b, bias=not normalised), make(b)),
        shortcut=shortcut,
        relu=nn.ReLU(inplace=True),
    )


def zero_padded_block(a, b):
    """A residual block whose shortcut fills new channels with zeros."""
    extra = (b - a) // 2

    def forward(m, x):
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, b - a - extra))
        return F.relu(m.second(F.relu(m.first(x))) + shortcut)

    return Block(forward, first=conv(a, b, stride=2), second=conv(b, b))


def dense_net():
    """Concatenated features, each normalised anew by every later layer."""

    def forward(m, x):
        h = m.stem(x)
        h = torch.cat([h, m.first(h)], 1)
        h = torch.cat([h, m.second(h)], 1)
        return m.head(F.relu(m.norm(h)))

    def layer(a, b):
        return nn.Sequential(norm(a), nn.ReLU(), conv(a, b))

    return Block(
        forward, stem=conv(2, 3), first=layer(3, 2), second=layer(5, 2), norm=norm(7), head=head(7)
    )  # fmt: skip


def u_net():
    """An encoder and a decoder with a skip connection and a transposed convolution."""

    def forward(m, x):
        e = F.relu(m.encode(x))
        h = F.relu(m.up(F.relu(m.down(e))))
        return m.last(F.relu(m.merge(torch.cat([e, h], 1))))

    return Block(
        forward, encode=conv(2, 3), down=conv(3, 4, stride=2), up=nn.ConvTranspose2d(4, 3, 2, 2),
        merge=conv(6, 3), last=conv(3, 2, 1),
    )  # fmt: skip


def shuffle_net():
    """Grouped convolutions with a channel shuffle written out."""

    def forward(m, x):
        h = F.relu(m.grouped(F.relu(m.first(x))))
        n, c, height, width = h.shape
        h = h.view(n, 2, c // 2, height, width).transpose(1, 2)
        h = h.reshape(n, c, height, width)
        return m.head(F.relu(m.last(m.depthwise(h))))

    return Block(
        forward, first=conv(2, 4, 1), grouped=conv(4, 4, groups=2), depthwise=conv(4, 4, groups=4),
        last=conv(4, 4, 1, groups=2), head=head(4),
    )  # fmt: skip


def squeeze_excitation():
    """A gate from globally pooled features: it pins its own logits, not the features."""

    def forward(m, x):
        h = F.relu(m.features(x))
        gate = torch.sigmoid(m.excite(F.relu(m.squeeze(h.mean((2, 3))))))
        return m.last((h * gate[:, :, None, None]).mean((2, 3)))

    return Block(
        forward, features=conv(2, 4), squeeze=nn.Linear(4, 3), excite=nn.Linear(3, 4),
        last=nn.Linear(4, 2),
    )  # fmt: skip


def hidden(function, **members):
    """``last(function(first(x)))`` with five units."""
    return Block(
        lambda m, x: m.last(function(m, m.first(x))),
        first=nn.Linear(4, 5), last=nn.Linear(5, 2), **members,
    )  # fmt: skip


def twice(bias=True):
    """A layer applied twice after an input layer."""

    def forward(m, x):
        h = F.relu(m.layer(F.relu(m.first(x))))
        return m.last(F.relu(m.layer(h)))

    return Block(
        forward, first=nn.Linear(4, 4), layer=nn.Linear(4, 4, bias=bias), last=nn.Linear(4, 2)
    )  # fmt: skip


def written_in_place():
    """Slices written into a tensor of zeros, then changed through a view."""

    def forward(m, x):
        h = F.relu(m.a(x))
        z = torch.zeros_like(h)
        z[:, :2] = m.b(x)
        z[:, 2:] = F.relu(m.c(x))
        z[:, 0].mul_(h[:, 0])
        return m.last(z + h)

    return Block(
        forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2), c=nn.Linear(4, 2), last=nn.Linear(4, 2)
    )  # fmt: skip


def seen_through_a_view():
    """A view made before the tensor changes sees the change."""

    def forward(m, x):
        h = m.a(x) * 1.0
        view = h.view(-1, 2, 2)
        view[:, 0].mul_(m.b(x))
        return m.last(view.transpose(1, 2).reshape(-1, 4) + h)

    return Block(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2), last=nn.Linear(4, 2))


def without_gradients():
    """A branch that autograd does not see is still part of the function."""

    def forward(m, x):
        h = F.relu(m.a(x))
        with torch.no_grad():
            side = F.relu(m.b(h))
        return m.last(h + side)

    return Block(forward, a=nn.Linear(4, 3), b=nn.Linear(3, 3), last=nn.Linear(3, 2))


@dataclass(frozen=True)
class Architecture:
    """A network, the shape of its input, the dimension of its group by hand."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dimension: int

    def build(self) -> nn.Module:
        """The network with seeded parameters, positive running statistics, none of them zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = self.make().double()
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.2 * torch.randn_like(p)
                for buffer in model.buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(torch.rand_like(buffer) + 0.5)
        return model

    def inputs(self) -> torch.Tensor:
        """Seeded inputs."""
        generator = torch.Generator().manual_seed(3)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


def frozen_bias():
    """A unit with a constant offset cannot be scaled."""
    model = dense(4, 3, 2)
    model[0].bias.requires_grad_(False)
    return model


def on(shape, dimension, make):
    """Short for an architecture."""
    return Architecture(make, shape, dimension)


ARCHITECTURES = {
    # dimensions of MATH 10
    "residual": on(VECTORS, 9, lambda: Block(
        lambda m, x: (lambda h: m.o(h + m.b(F.relu(m.a(h)))))(m.i(x)),
        i=nn.Linear(4, 4), a=nn.Linear(4, 5), b=nn.Linear(5, 4), o=nn.Linear(4, 2))),
    "product with itself": on(VECTORS, 5, lambda: hidden(lambda m, h: h * h)),
    "offset": on(VECTORS, 4, lambda: Block(
        lambda m, x: m.o(F.relu(m.b(F.relu(m.a(x) + 1.0)))),
        a=nn.Linear(4, 5), b=nn.Linear(5, 4), o=nn.Linear(4, 2))),
    "applied twice": on(VECTORS, 4, twice),
    "applied twice without bias": on(VECTORS, 5, lambda: twice(bias=False)),
    # chains
    "mlp": on(VECTORS, 8, lambda: dense(4, 5, 3, 2)),
    "linear mlp": on(VECTORS, 6, lambda: nn.Sequential(
        nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))),
    "unbatched mlp": on((4,), 3, lambda: dense(4, 3, 2)),
    "functional": on(VECTORS, 5, lambda: Block(
        lambda m, x: F.relu(x @ m.a) @ m.b, a=parameter(4, 5), b=parameter(5, 2))),
    "lenet": on(IMAGES, 14, lambda: nn.Sequential(
        conv(2, 3), nn.ReLU(), nn.AvgPool2d(2), conv(3, 4, padding=0), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), *dense(4, 4, 3, 2))),
    "convolution, flatten, linear": on(IMAGES, 7, lambda: nn.Sequential(
        conv(2, 3, padding=0), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *dense(27, 4, 2))),
    "conv1d": on((4, 2, 8), 7, lambda: nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.LeakyReLU(0.1), nn.Conv1d(3, 4, 2, 2), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 2))),
    "conv3d": on((3, 2, 3, 3, 3), 5, lambda: nn.Sequential(
        nn.Conv3d(2, 3, 2), nn.ReLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(3, 2, 2), nn.Flatten(),
        nn.Linear(16, 2))),
    "prelu": on(VECTORS, 5, lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 2))),
    "abs": on(VECTORS, 5, lambda: hidden(lambda m, h: h.abs())),
    "maximum": on(VECTORS, 5, lambda: hidden(lambda m, h: torch.maximum(h, 0.3 * h))),
    # normalisation
    "vgg": on(IMAGES, 13, lambda: nn.Sequential(
        conv(2, 3), nn.ReLU(), conv(3, 3), nn.ReLU(), nn.MaxPool2d(2), conv(3, 4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(3, 2))),
    "vgg, normalised": on(IMAGES, 23, lambda: nn.Sequential(
        conv(2, 3), norm(3), nn.ReLU(), conv(3, 3), norm(3), nn.ReLU(), nn.MaxPool2d(2),
        conv(3, 4), norm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
        nn.ReLU(), nn.Dropout(0.5), nn.Linear(3, 2))),
    "normalised mlp": on(VECTORS, 14, lambda: nn.Sequential(
        nn.Linear(4, 5), norm(5, 1), nn.ReLU(), nn.Linear(5, 4, bias=False),
        norm(4, 1, affine=False), nn.ReLU(), nn.Linear(4, 2))),
    "instance normalisation": on(IMAGES, 8, lambda: nn.Sequential(
        conv(2, 3, padding=0), nn.InstanceNorm2d(3, eps=EPS, affine=True, track_running_stats=True),
        nn.ReLU(), conv(3, 2, padding=0), nn.InstanceNorm2d(2, eps=EPS), nn.Flatten(),
        nn.Linear(32, 2))),
    "layer normalisation": on(VECTORS, 6, lambda: nn.Sequential(
        nn.Linear(4, 5), nn.LayerNorm(5, eps=EPS), nn.ReLU(), nn.Linear(5, 2))),
    "group normalisation": on(IMAGES, 6, lambda: nn.Sequential(
        conv(2, 4), nn.GroupNorm(2, 4, eps=EPS), nn.ReLU(), head(4))),
    "weight normalisation": on(VECTORS, 6, lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.ReLU(), nn.Linear(3, 2))),
    # graphs
    "resnet": on(IMAGES, 14, lambda: nn.Sequential(
        conv(2, 3), nn.ReLU(), residual_block(3, 3, 1, False), residual_block(3, 4, 2, False),
        head(4))),
    "resnet, normalised": on(IMAGES, 35, lambda: nn.Sequential(
        conv(2, 3, bias=False), norm(3), nn.ReLU(), residual_block(3, 3), residual_block(3, 4, 2),
        head(4))),
    "zero-padded shortcut": on(IMAGES, 10, lambda: nn.Sequential(
        conv(2, 3), nn.ReLU(), zero_padded_block(3, 5), head(5))),
    "densenet": on(IMAGES, 22, dense_net),
    "depthwise-separable": on(IMAGES, 17, lambda: nn.Sequential(
        conv(2, 4), nn.ReLU(), conv(4, 4, groups=4), nn.ReLU(), conv(4, 3, 1), nn.ReLU(),
        conv(3, 6, padding=0, groups=3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        nn.Linear(6, 2))),
    "grouped sink": on(IMAGES, 10, lambda: nn.Sequential(
        conv(2, 6, padding=0), nn.ReLU(), conv(6, 4, padding=0, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 2))),
    "grouped transposed": on(IMAGES, 10, lambda: nn.Sequential(
        conv(2, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.ReLU(), head(6))),
    "u-net": on(IMAGES, 13, u_net),
    "channel shuffle": on(IMAGES, 16, shuffle_net),
    "squeeze-excitation": on(IMAGES, 7, squeeze_excitation),
    "offset in a concatenation": on(VECTORS, 3, lambda: Block(
        lambda m, x: (lambda a, b: m.o(torch.cat([F.relu(a), F.relu(b) + 1.0, a[:, :2]], 1)))(
            m.a(x), m.b(x)),
        a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(8, 2))),
    "gated product": on(VECTORS, 6, lambda: Block(
        lambda m, x: m.o(F.relu(m.a(x)) * m.b(x)),
        a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(3, 2))),
    "split": on(VECTORS, 6, lambda: Block(
        lambda m, x: (lambda a, b, c: m.o(a.relu() * b + c))(*m.a(x).split(3, 1)),
        a=nn.Linear(4, 9), o=nn.Linear(3, 2))),
    "powers": on(VECTORS, 8, lambda: Block(
        lambda m, x: m.o(F.relu(m.b(F.relu(m.a(x)) ** 2)) ** 3),
        a=nn.Linear(4, 5), b=nn.Linear(5, 3), o=nn.Linear(3, 2))),
    "half powers": on(VECTORS, 3, lambda: Block(
        lambda m, x: m.o(torch.sqrt(F.relu(m.a(x)).square() + F.relu(m.b(x)))),
        a=nn.Linear(4, 3), b=nn.Linear(4, 3), o=nn.Linear(3, 2))),
    "division by a norm": on(VECTORS, 1, lambda: hidden(
        lambda m, h: h / h.norm(dim=1, keepdim=True))),
    "upsampling": on(IMAGES, 5, lambda: nn.Sequential(
        conv(2, 3, padding=0), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(3, 2, 3, padding="same", padding_mode="circular"), head(2))),
    "pixel shuffle": on(IMAGES, 3, lambda: nn.Sequential(
        conv(2, 4), nn.ReLU(), nn.PixelShuffle(2), conv(1, 2), nn.ReLU(), head(2))),
    "padding": on(IMAGES, 9, lambda: nn.Sequential(
        conv(2, 3, padding=0), nn.ReLU(), nn.ZeroPad2d(1), conv(3, 4, padding=0, stride=2),
        nn.ReLU(), nn.ReflectionPad2d(1), conv(4, 2, padding=0), head(2))),
    # ties
    "tied autoencoder": on(VECTORS, 0, lambda: Block(
        lambda m, x: F.linear(F.relu(m.a(x)), m.a.weight.t(), m.b),
        a=nn.Linear(4, 3), b=parameter(4))),
    "deep tied autoencoder": on(VECTORS, 3, lambda: Block(
        lambda m, x: F.linear(
            F.relu(F.linear(F.relu(m.b(F.relu(m.a(x)))), m.b.weight.t())), m.a.weight.t()),
        a=nn.Linear(4, 3), b=nn.Linear(3, 5))),
    "fused projections": on(VECTORS, 3, lambda: Block(
        lambda m, x: (lambda q, k: m.o(F.relu(q) + F.relu(k).flip(1)))(
            *(F.linear(x, w) for w in m.w.chunk(2))),
        w=parameter(6, 4), o=nn.Linear(3, 2))),
    "low-rank update": on(VECTORS, 5, lambda: Block(
        lambda m, x: m.o(F.relu(F.linear(x, m.w.weight + m.b @ m.a))),
        w=nn.Linear(4, 3, bias=False), b=parameter(3, 2), a=parameter(2, 4), o=nn.Linear(3, 2))),
    # scales along several axes
    "token mixer": on(TOKENS, 8, lambda: Block(
        lambda m, x: m.o(m.u(F.relu(m.t(m.i(x).transpose(1, 2)))).mean(2)),
        i=nn.Linear(4, 3, bias=False), t=nn.Linear(5, 4, bias=False),
        u=nn.Linear(4, 5, bias=False), o=nn.Linear(3, 2))),
    "scaled positions": on(TOKENS, 10, lambda: Block(
        lambda m, x: m.o(F.relu(m.c(m.i(x) * m.p)).mean(1)),
        i=nn.Linear(4, 3), p=parameter(5, 3), c=nn.Linear(3, 4), o=nn.Linear(4, 2))),
    "linear attention": on(TOKENS, 7, lambda: Block(
        lambda m, x: m.o(F.relu(m.q(x)) @ F.relu(m.k(x)).transpose(1, 2) @ m.v(x)),
        q=nn.Linear(4, 3), k=nn.Linear(4, 3), v=nn.Linear(4, 3), o=nn.Linear(3, 2))),
    "einsum": on(VECTORS, 6, lambda: Block(
        lambda m, x: m.o(torch.einsum("ni,hij->nhj", x, m.w).relu().flatten(1)),
        w=parameter(2, 4, 3), o=nn.Linear(6, 2))),
    "a scalar": on(VECTORS, 6, lambda: hidden(
        lambda m, h: F.relu(h) * m.scalar, scalar=nn.Parameter(torch.tensor(1.5)))),
    # what pins, and what only looks as if
    "relu6": on(VECTORS, 4, lambda: nn.Sequential(
        nn.Linear(4, 5), nn.ReLU6(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))),
    "gelu": on(VECTORS, 0, lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2))),
    "unknown operation": on(VECTORS, 0, lambda: hidden(lambda m, h: torch.special.bessel_j0(h))),
    "a result never used": on(VECTORS, 5, lambda: hidden(
        lambda m, h: (torch.tanh(h), F.relu(h))[1])),
    "select by sign": on(VECTORS, 5, lambda: hidden(lambda m, h: torch.where(h > 0, h, 0.1 * h))),
    "frozen bias": on(VECTORS, 0, frozen_bias),
    # program structure
    "written in place": on(VECTORS, 4, written_in_place),
    "seen through a view": on(VECTORS, 5, seen_through_a_view),
    "without gradients": on(VECTORS, 3, without_gradients),
    "checkpointed": on(VECTORS, 8, lambda: Block(
        lambda m, x: m.o(checkpoint(
            lambda h: F.relu(m.b(F.relu(h))), m.a(x), use_reentrant=False)),
        a=nn.Linear(4, 5), b=nn.Linear(5, 3), o=nn.Linear(3, 2))),
}  # fmt: skip


def asks_for_mode(model, inputs) -> bool:
    """Whether a forward reads ``training``: else the model is one function in both modes."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        del module.training
    args, kwargs = call_arguments(inputs, "asks_for_mode")
    try:
        twin(*args, **kwargs)
    except AttributeError as error:
        if "'training'" in str(error):
            return True
        raise
    return False


def derive(name, training=False):
    """A network, its inputs and its symmetry."""
    architecture = ARCHITECTURES[name]
    model, inputs = architecture.build().train(training), architecture.inputs()
    return model, inputs, qn.discover(model, inputs)
