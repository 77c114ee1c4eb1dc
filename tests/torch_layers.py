"""Every layer that torch.nn has, between linear layers that show which scales it passes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from architectures import EPS, Block
from torch import nn

ROWS, LINES, MAPS, SOLIDS = (5, 4), (5, 4, 6), (4, 4, 4, 4), (4, 4, 3, 3, 3)
"""Inputs by the number of axes that positions have: ``(N, channels, ...)``."""

LABELS = torch.tensor([0, 2, 1, 3, 0])


@dataclass(frozen=True)
class Layer:
    """A layer behind a linear map of channels and in front of a linear layer.

    Attributes:
        make: The layer.
        shape: Of the input, ``(N, 4, ...)``.
        call: What is done with it, by default ``m.layer(h)``.
        training: The mode.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    call: Callable | None = None
    training: bool = False

    def build(self) -> nn.Module:
        """The network with seeded parameters."""

        def forward(m, x):
            h = m.before(x.movedim(1, -1)).movedim(-1, 1)
            y = m.layer(h) if self.call is None else self.call(m.layer, h)
            return m.after(y.reshape(y.shape[0] if y.ndim else 1, -1))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = Block(
                forward, before=nn.Linear(4, 4), layer=self.make(), after=nn.LazyLinear(2)
            )  # fmt: skip
            with torch.no_grad():
                model.eval()(torch.randn(self.shape))
                model.double()
                for p in model.parameters():
                    p += 0.2 * torch.randn_like(p)
                for name, buffer in model.named_buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(torch.rand_like(buffer) + 0.5)
        return model.train(self.training)

    def inputs(self) -> torch.Tensor:
        """Seeded inputs."""
        generator = torch.Generator().manual_seed(3)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64)


def of_rows(make, call=None):
    """Short for a layer of vectors."""
    return Layer(make, ROWS, call)


def by_dimension(name, *args, call=None, **options):
    """``name1d``, ``name2d`` and ``name3d``, as far as there are."""
    kinds = {f"{name}{d}d": shape for d, shape in ((1, LINES), (2, MAPS), (3, SOLIDS))}
    return {
        kind: Layer(lambda k=kind: getattr(nn, k)(*args, **options), shape, call)
        for kind, shape in kinds.items()
        if hasattr(nn, kind)
    }


def on_rows(*names):
    """Layers without arguments."""
    return {name: of_rows(lambda n=name: getattr(nn, n)()) for name in names}


def loss(name, target, call=None, **options):
    """A loss of scores, one a sample."""

    def default(layer, h):
        return layer(h, target(h))

    return {
        name: of_rows(
            lambda: getattr(nn, name)(reduction="none", **options), call or default
        )
    }


def signs(h):
    """Targets ±1 of the shape of ``h``."""
    return torch.where(torch.arange(h.numel()).view(h.shape) % 3 == 0, 1.0, -1.0).to(h)


def shares(h):
    """Targets between 0 and 1 of the shape of ``h``."""
    return ((torch.arange(h.numel()).view(h.shape) % 5 + 1) / 6.0).to(h)


def unpooled(dims):
    """Pooling, and back to the places of the maxima."""

    def call(layer, h):
        y, places = getattr(nn.functional, f"max_pool{dims}d")(
            h, 2, return_indices=True
        )
        return layer(y, places)

    return call


def first_of(layer, h):
    """The first result."""
    return layer(h)[0]


def as_steps(layer, h):
    """Positions as the steps of a sequence."""
    return layer(h.transpose(1, 2))


def first_of_steps(layer, h):
    """The first result on steps of a sequence."""
    return layer(h.transpose(1, 2))[0]


def attended(layer, h):
    """Self-attention of steps."""
    h = h.transpose(1, 2)
    return layer(h, h, h)[0]


def decoded(layer, h):
    """Two steps that read all of them."""
    h = h.transpose(1, 2)
    return layer(h[:, :2], h)


def words_of(h):
    """Words out of four, by the signs of two channels; they depend on data."""
    return (h[:, 0] > 0).long() + 2 * (h[:, 1] > 0).long()


BLOCK = {"d_model": 4, "nhead": 2, "dim_feedforward": 3, "dropout": 0.0, "batch_first": True,
         "layer_norm_eps": EPS}  # fmt: skip

LAYERS = {
    **on_rows(
        "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity",
        "LeakyReLU", "LogSigmoid", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU",
        "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink", "GLU", "Dropout",
        "AlphaDropout", "FeatureAlphaDropout", "Dropout1d", "Flatten",
    ),
    **{n: of_rows(lambda n=n: getattr(nn, n)(dim=1)) for n in ("LogSoftmax", "Softmax", "Softmin")},
    "Softmax2d": Layer(nn.Softmax2d, MAPS),
    "Threshold": of_rows(lambda: nn.Threshold(0.1, 0.5)),
    "Threshold at zero": of_rows(lambda: nn.Threshold(0.0, 0.0)),
    "PReLU by channel": Layer(lambda: nn.PReLU(4), MAPS),
    "Dropout2d": Layer(nn.Dropout2d, MAPS),
    "Dropout3d": Layer(nn.Dropout3d, SOLIDS),
    "Linear": of_rows(lambda: nn.Linear(4, 3)),
    "LazyLinear": of_rows(lambda: nn.LazyLinear(3)),
    "Bilinear": of_rows(lambda: nn.Bilinear(4, 4, 3), lambda m, h: m(h, h)),
    "Unflatten": of_rows(lambda: nn.Unflatten(1, (2, 2))),
    "CosineSimilarity": of_rows(
        lambda: nn.CosineSimilarity(), lambda m, h: m(h[:, :2], h[:, 2:])[:, None]),
    "PairwiseDistance": of_rows(
        lambda: nn.PairwiseDistance(eps=0.0), lambda m, h: m(h[:, :2], h[:, 2:])[:, None]),
    # convolutions, normalisations, pooling, places
    **by_dimension("Conv", 4, 3, 2),
    **by_dimension("ConvTranspose", 4, 3, 2, stride=2),
    **by_dimension("LazyConv", 3, 2),
    **by_dimension("LazyConvTranspose", 3, 2, stride=2),
    **by_dimension("BatchNorm", 4, eps=EPS),
    **by_dimension("LazyBatchNorm", eps=EPS),
    **by_dimension("InstanceNorm", 4, eps=EPS, affine=True),
    **by_dimension("LazyInstanceNorm", eps=EPS, affine=True),
    "LayerNorm": of_rows(lambda: nn.LayerNorm(4, eps=EPS)),
    "RMSNorm": of_rows(lambda: nn.RMSNorm(4, eps=EPS)),
    "GroupNorm": Layer(lambda: nn.GroupNorm(2, 4, eps=EPS), MAPS),
    "LocalResponseNorm": Layer(lambda: nn.LocalResponseNorm(2), MAPS),
    "CrossMapLRN2d": Layer(lambda: nn.CrossMapLRN2d(2), MAPS),
    **by_dimension("AvgPool", 2),
    **by_dimension("MaxPool", 2),
    **by_dimension("LPPool", 2, 2),
    **by_dimension("AdaptiveAvgPool", 2),
    **by_dimension("AdaptiveMaxPool", 2),
    **by_dimension("CircularPad", 1),
    **by_dimension("ConstantPad", 1, 0.5),
    **by_dimension("ReflectionPad", 1),
    **by_dimension("ReplicationPad", 1),
    **by_dimension("ZeroPad", 1),
    "FractionalMaxPool2d": Layer(lambda: nn.FractionalMaxPool2d(2, output_size=2), MAPS),
    "FractionalMaxPool3d": Layer(lambda: nn.FractionalMaxPool3d(2, output_size=1), SOLIDS),
    **{f"MaxUnpool{d}d": Layer(lambda d=d: getattr(nn, f"MaxUnpool{d}d")(2), shape, unpooled(d))
       for d, shape in ((1, LINES), (2, MAPS), (3, (3, 4, 2, 2, 2)))},
    "Unfold": Layer(lambda: nn.Unfold(2), MAPS),
    "Fold": Layer(lambda: nn.Fold((4, 4), 2), MAPS, lambda m, h: m(
        nn.functional.unfold(h, 2).relu())),
    "PixelShuffle": Layer(lambda: nn.PixelShuffle(2), MAPS),
    "PixelUnshuffle": Layer(lambda: nn.PixelUnshuffle(2), MAPS),
    "ChannelShuffle": Layer(lambda: nn.ChannelShuffle(2), MAPS),
    "Upsample": Layer(lambda: nn.Upsample(scale_factor=2), MAPS),
    "Upsample, linear": Layer(lambda: nn.Upsample(scale_factor=2, mode="linear"), LINES),
    "Upsample, bicubic": Layer(lambda: nn.Upsample(scale_factor=2, mode="bicubic"), MAPS),
    "Upsample, trilinear": Layer(lambda: nn.Upsample(scale_factor=2, mode="trilinear"), SOLIDS),
    "UpsamplingNearest2d": Layer(lambda: nn.UpsamplingNearest2d(scale_factor=2), MAPS),
    "UpsamplingBilinear2d": Layer(lambda: nn.UpsamplingBilinear2d(scale_factor=2), MAPS),
    # sequences
    **{n: Layer(lambda n=n: getattr(nn, n)(4, 3, batch_first=True), LINES, first_of_steps)
       for n in ("RNN", "LSTM", "GRU")},
    "RNNCell": of_rows(lambda: nn.RNNCell(4, 3)),
    "RNNCell, relu": of_rows(lambda: nn.RNNCell(4, 3, nonlinearity="relu")),
    "LSTMCell": of_rows(lambda: nn.LSTMCell(4, 3), first_of),
    "GRUCell": of_rows(lambda: nn.GRUCell(4, 3)),
    "MultiheadAttention": Layer(
        lambda: nn.MultiheadAttention(4, 2, batch_first=True), (4, 4, 3), attended),
    "TransformerEncoderLayer": Layer(
        lambda: nn.TransformerEncoderLayer(**BLOCK), (4, 4, 3), as_steps),
    "TransformerEncoder": Layer(
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**BLOCK, norm_first=True), 1, enable_nested_tensor=False),
        (4, 4, 3), as_steps),
    "TransformerDecoderLayer": Layer(
        lambda: nn.TransformerDecoderLayer(**BLOCK), (4, 4, 3), decoded),
    "TransformerDecoder": Layer(
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**BLOCK), 1), (4, 4, 3), decoded),
    "Transformer": Layer(
        lambda: nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **BLOCK), (4, 4, 3),
        decoded),
    # words
    "Embedding": of_rows(lambda: nn.Embedding(4, 3), lambda m, h: m(words_of(h))),
    "EmbeddingBag": of_rows(
        lambda: nn.EmbeddingBag(4, 3), lambda m, h: m(words_of(h)[:, None].expand(-1, 2))),
    "EmbeddingBag, weighted": of_rows(
        lambda: nn.EmbeddingBag(4, 3, mode="sum"),
        lambda m, h: m(words_of(h)[:, None], None, h[:, 2:3])),
    # containers
    "Sequential": of_rows(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU())),
    "ModuleList": of_rows(lambda: nn.ModuleList([nn.Linear(4, 3)]), lambda m, h: m[0](h)),
    "ModuleDict": of_rows(lambda: nn.ModuleDict({"a": nn.Linear(4, 3)}), lambda m, h: m["a"](h)),
    "ParameterList": of_rows(
        lambda: nn.ParameterList([torch.ones(4)]), lambda m, h: h * m[0]),
    "ParameterDict": of_rows(
        lambda: nn.ParameterDict({"a": torch.ones(4)}), lambda m, h: h * m["a"]),
    # losses
    **loss("BCELoss", shares, lambda m, h: m(h.sigmoid(), shares(h))),
    **loss("BCEWithLogitsLoss", shares),
    **loss("CTCLoss", None, lambda m, h: m(
        h[:, None].log_softmax(-1), torch.tensor([[1, 2]]), torch.tensor([5]), torch.tensor([2]))),
    **loss("CosineEmbeddingLoss", None, lambda m, h: m(h[:, :2], h[:, 2:], signs(h[:, 0]))),
    **loss("CrossEntropyLoss", lambda h: LABELS),
    **loss("GaussianNLLLoss", None, lambda m, h: m(h, shares(h), h.exp())),
    **loss("HingeEmbeddingLoss", signs),
    **loss("HuberLoss", shares),
    **loss("KLDivLoss", shares),
    **loss("L1Loss", shares),
    **loss("MSELoss", shares),
    **loss("MSELoss", shares),
    **loss("MarginRankingLoss", None, lambda m, h: m(h[:, 0], h[:, 1], signs(h[:, 0]))),
    **loss("MultiLabelMarginLoss", lambda h: LABELS[:, None].repeat(1, 4)),
    **loss("MultiLabelSoftMarginLoss", shares),
    **loss("MultiMarginLoss", lambda h: LABELS),
    **loss("NLLLoss", lambda h: LABELS),
    **loss("NLLLoss2d", None, lambda m, h: m(h[:, :, None, None], LABELS[:, None, None])),
    **loss("PoissonNLLLoss", shares),
    **loss("SmoothL1Loss", shares),
    **loss("SoftMarginLoss", signs),
    **loss("TripletMarginLoss", None, lambda m, h: m(h[:, :2], h[:, 1:3], h[:, 2:])),
    **loss("TripletMarginWithDistanceLoss", None, lambda m, h: m(h[:, :2], h[:, 1:3], h[:, 2:])),
    "LinearCrossEntropyLoss": of_rows(
        lambda: nn.LinearCrossEntropyLoss(4, 4, reduction="none"), lambda m, h: m(h, LABELS)),
    "AdaptiveLogSoftmaxWithLoss": of_rows(
        lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2, 4], div_value=2.0),
        lambda m, h: m.log_prob(h)),
}  # fmt: skip

NO_GRAPH = {
    "CTCLoss": "the shape of its intermediate results depends on data",
    "GaussianNLLLoss": "it checks the sign of the variance",
}
"""Layers that torch cannot export, and why."""

LIMITS = {
    "Hardshrink": "it jumps at its thresholds, where derivatives see no symmetry broken",
    "CosineEmbeddingLoss": "it adds 1e-12 to each length, too little for derivatives to see",
}
"""Layers for which the derivatives allow more than the function does, and why."""

if not hasattr(nn, "LinearCrossEntropyLoss"):  # the lowest version of torch
    del LAYERS["LinearCrossEntropyLoss"]

NO_LAYERS = {
    "Container", "DataParallel", "Module", "RNNBase", "RNNCellBase", "SyncBatchNorm",
}  # fmt: skip
"""Base classes, and what needs several devices."""


def classes() -> set[str]:
    """The names of all module classes of torch.nn."""
    return {
        name
        for name, kind in vars(nn).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module)
    }
