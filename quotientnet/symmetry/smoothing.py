"""Scales for a migration, from the sizes of activations on data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from quotientnet.options import require_number
from quotientnet.symmetry.choices import Choice
from quotientnet.symmetry.discover import (
    call_arguments,
    exponents_of_unknowns,
    layout_of,
)
from quotientnet.symmetry.epsilon import graph_inputs
from quotientnet.symmetry.explanation import Symmetry
from quotientnet.symmetry.export import export
from quotientnet.symmetry.graph import Walk
from quotientnet.symmetry.migration import ScaleMapping, scale_mappings
from quotientnet.symmetry.refusals import errors_of
from quotientnet.symmetry.replica import first_line, shapes_of
from quotientnet.symmetry.rules import find_rule
from quotientnet.symmetry.scales import LogScale, compact

__all__ = ["ChannelSizes", "channel_sizes", "smoothing"]


@dataclass(frozen=True)
class ChannelSizes:
    """The sizes of what meets in products, channel by channel, on calibration data.

    A channel's scale is divided away on one side of a product and multiplied on the other: the
    inputs of a linear layer and its columns, or queries and keys. Sizes are in units of the
    channel's scale: where an activation grows with its square, the root of its magnitude.

    Attributes:
        activations: The largest magnitude of the side that a mapping divides, float64, shape
            ``(dimension,)``; 0 where nothing was seen.
        means: The mean magnitude of that side, the same shape.
        readers: The largest magnitude of the other side, weights in most cases.
        symmetry: The symmetry whose generators these are.
    """

    activations: Tensor
    means: Tensor
    readers: Tensor
    symmetry: Symmetry = field(repr=False)

    @property
    def seen(self) -> Tensor:
        """Which channels had a nonzero size on both sides, boolean, shape ``(dimension,)``."""
        return (self.activations > 0) & (self.readers > 0)


def channel_sizes(
    model: nn.Module,
    symmetry: Symmetry,
    batches: Iterable[Tensor | Sequence | Mapping],
) -> ChannelSizes:
    """Run a model on data and measure what its scale mappings can move.

    The graph of the model is run, in the module's mode, and every product in it observed: linear
    layers, convolutions, attention and products of any tensors, whole or inside a mixture of
    experts. Nothing of the model's changes.

    Args:
        model: The module.
        symmetry: What :func:`~quotientnet.discover` returned for it.
        batches: Inputs, each as :func:`~quotientnet.discover` takes them. Each new shape takes an
            export.

    Raises:
        TypeError: No ``symmetry`` of :func:`~quotientnet.discover`; a tensor in place of batches.
        ValueError: The symmetry is another model's, or that of another mode; no batches; a batch
            whose activations are NaN or infinite.

    Note:
        One forward a batch, observed on the model's device.
    """
    if not isinstance(symmetry, Symmetry):
        raise TypeError(
            "channel_sizes: symmetry must be what discover returned, got "
            f"{type(symmetry).__name__}"
        )
    if isinstance(batches, (Tensor, Mapping)):
        raise TypeError(
            "channel_sizes: batches must be an iterable of inputs, got one "
            f"{type(batches).__name__}; pass [inputs]"
        )
    layout_of(model, symmetry.group.layout, "channel_sizes")
    seen, observers = _Seen(symmetry), {}
    for number, batch in enumerate(_each(batches)):
        args, kwargs = call_arguments(batch, "channel_sizes")
        key = _signature(args, kwargs)
        if key not in observers:
            with errors_of("channel_sizes"):
                observers[key] = _Observer(model, symmetry, args, kwargs, seen)
        observers[key].observe(args, kwargs)
        seen.require_finite(number)
    if not observers:
        raise ValueError("channel_sizes: batches is empty; pass one batch or more")
    return seen.sizes()


def _each(batches) -> Iterator:
    try:
        return iter(batches)
    except TypeError:
        raise TypeError(
            "channel_sizes: batches must be an iterable of inputs, got "
            f"{type(batches).__name__}"
        ) from None


def smoothing(
    sizes: ChannelSizes,
    alpha: float = 0.5,
    *,
    mappings: Sequence[ScaleMapping] | None = None,
) -> Tensor:
    r"""The group element that moves the scales of activations into weights.

    :math:`s_j = \max |X_j|^{\alpha} / \max |W_j|^{1 - \alpha}`, Eq. (4) of [Xiao2023]_, for
    each channel of each mapping: its activations are divided by ``s_j`` and what reads them is
    multiplied by it. With several readers, both maxima are over all of them. Channels that were
    not seen stay as they are.

    Args:
        sizes: What :func:`channel_sizes` measured.
        alpha: How much of the activations' range moves: 0 to 1.
        mappings: Which to use; all by default. Scales of several mappings are those of the model
            as it is, one by one.

    Returns:
        Coordinates ``t``, float64, shape ``(dimension,)``, for :func:`~quotientnet.transform`.

    Raises:
        TypeError: ``sizes`` are not what :func:`channel_sizes` measured, ``alpha`` is no number,
            ``mappings`` no sequence of mappings.
        ValueError: ``alpha`` is not between 0 and 1; a mapping of another group; sizes that are
            NaN or infinite.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)).double()
        >>> x = torch.randn(5, 4).double()
        >>> symmetry = qn.discover(model, x)
        >>> sizes = qn.symmetry.channel_sizes(model, symmetry, [x])
        >>> twin = qn.transform(model, symmetry, qn.symmetry.smoothing(sizes), inputs=x)
        >>> inputs, columns = twin[0](x).abs().amax(0), twin[1].weight.abs().amax(0)
        >>> bool(torch.allclose(inputs, columns))
        True
    """
    if not isinstance(sizes, ChannelSizes):
        raise TypeError(
            f"smoothing: sizes must be what channel_sizes measured, got {type(sizes).__name__}"
        )
    require_number(alpha, "smoothing", "alpha", most=1)
    if not torch.isfinite(torch.stack([sizes.activations, sizes.readers])).all():
        raise ValueError("smoothing: sizes are NaN or infinite; measure them once more")
    group = sizes.symmetry.group
    t = torch.zeros(group.dimension, dtype=torch.float64)
    for mapping in _chosen(sizes, mappings):
        own = torch.from_numpy(mapping.generators)
        s = sizes.activations[own] ** alpha / sizes.readers[own] ** (1 - alpha)
        t += mapping.coordinates(torch.where(sizes.seen[own], s, 1.0))
    return t


def _chosen(sizes: ChannelSizes, mappings) -> Iterator[ScaleMapping]:
    """The mappings, each of the group of the sizes."""
    everything = scale_mappings(sizes.symmetry) if mappings is None else mappings
    if isinstance(everything, (str, ScaleMapping)) or not isinstance(
        everything, Iterable
    ):
        raise TypeError(
            "smoothing: mappings must be a sequence of ScaleMapping, such as [mappings[0]], got "
            f"one {type(everything).__name__}"
        )
    for mapping in everything:
        if not isinstance(mapping, ScaleMapping):
            raise TypeError(
                f"smoothing: each of mappings must be a ScaleMapping, got {mapping!r}; "
                "scale_mappings(symmetry)[name] is one by name"
            )
        if mapping.group != sizes.symmetry.group:
            raise ValueError(
                f"smoothing: the mapping of {mapping.source!r} is of another group than the sizes"
            )
        yield mapping


def _signature(args, kwargs):
    leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs))
    kinds = [
        (tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else x
        for x in leaves
    ]
    return str((kinds, spec))


class _Seen:
    """Sizes so far, by generator."""

    def __init__(self, symmetry: Symmetry):
        self.symmetry, self.sign = symmetry, np.zeros(symmetry.group.dimension)
        for mapping in scale_mappings(symmetry):
            self.sign[mapping.generators] = mapping.sign
        count = symmetry.group.dimension
        self.largest, self.sums = np.zeros((2, count)), np.zeros(count)
        self.numbers = np.zeros(count)

    def add(self, side: int, generators, exponents, largest, sums, numbers) -> None:
        """Statistics of entries that grow with a generator to the power of an exponent."""
        powers = 1 / np.abs(exponents)
        np.maximum.at(self.largest[side], generators, largest**powers)
        if side == 0:
            plain = np.where(numbers > 0, sums / np.maximum(numbers, 1), 0.0)
            np.add.at(self.sums, generators, numbers * plain**powers)
            np.add.at(self.numbers, generators, numbers)

    def require_finite(self, number: int) -> None:
        """Refuse a batch after which sizes are NaN or infinite."""
        bad = ~(np.isfinite(self.largest).all(0) & np.isfinite(self.sums))
        if bad.any():
            mappings = scale_mappings(self.symmetry)
            where = next(m.source for m in mappings if bad[m.generators].any())
            raise ValueError(
                f"channel_sizes: with batch {number}, counted from 0, what meets in products is "
                f"NaN or infinite, first in channels of {where!r}; look for such entries in the "
                "batch and the parameters, or use a wider dtype"
            )

    def sizes(self) -> ChannelSizes:
        """What was seen."""
        means = self.sums / np.maximum(self.numbers, 1)
        values = (self.largest[0], means, self.largest[1])
        return ChannelSizes(*map(torch.from_numpy, values), self.symmetry)


class _Observer:
    """The graph of a model for inputs of one shape."""

    def __init__(self, model, symmetry: Symmetry, args, kwargs, seen: _Seen):
        self.walk = Walk(export(model, args, kwargs), symmetry.group.layout)
        solution = self.walk.equations.solve()
        self.exponents = exponents_of_unknowns(self.walk, solution)
        self.rows, self.seen = solution.row, seen
        if self.exponents.shape[1] != symmetry.group.dimension or (
            model.training != symmetry.training
        ):
            raise ValueError(
                "channel_sizes: the symmetry is not that of the model in its present mode on these "
                "inputs; pass what discover(model, inputs) returns"
            )

    def observe(self, args, kwargs) -> None:
        """Run the graph on inputs."""
        inputs = graph_inputs(self.walk.program, args, kwargs)
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        devices = [tensors[0].device] if tensors and tensors[0].is_cuda else []
        quietly = np.errstate(invalid="ignore", over="ignore")  # require_finite tells
        with torch.no_grad(), torch.random.fork_rng(devices=devices), quietly:
            try:
                _Watch(self).run(*inputs)
            except RuntimeError as error:
                raise ValueError(
                    "channel_sizes: the model does not run on inputs of shape "
                    f"{shapes_of(args, kwargs)}: {first_line(error)}"
                ) from error

    def lines(self, x: LogScale, values: Mapping[int, int]):
        """The exponents of the distinct log-scales of a tensor, and which each entry has.

        Those of a large tensor term by term: rows and columns of a weight.
        """
        terms = [(c, self._settled(compact(i).numpy(), values)) for c, i in x.terms]
        shape = np.broadcast_shapes(*(index.shape for _, index in terms))
        if terms and np.prod(shape) <= _TOGETHER:
            return [self._lines(terms)]
        return [self._lines([term]) for term in terms]

    def _lines(self, terms) -> tuple[sparse.csr_array, np.ndarray]:
        indices = np.broadcast_arrays(*(index for _, index in terms))
        flat = np.stack([index.reshape(-1) for index in indices], 1)
        unique, which = np.unique(flat, axis=0, return_inverse=True)
        total = sparse.csr_array((len(unique), self.exponents.shape[1]), dtype=np.int64)
        for m, (c, _) in enumerate(terms):
            # Entries that are always zero have no exponents.
            some = sparse.diags_array(
                (unique[:, m] >= 0).astype(np.int64), dtype=np.int64
            )
            total = total + c * (some @ self.exponents[self.rows[unique[:, m]]])
        total.eliminate_zeros()
        return total, which.reshape(indices[0].shape)

    def _settled(self, index: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
        """Unknowns that the data choose replaced by those that they chose."""
        choices = self.walk.equations.choices
        where = choices.among(index)
        if not where.any():
            return index
        index = index.copy()
        index[where] = choices.chosen(index[where], values)
        return self._settled(index, values)


class _Watch(torch.fx.Interpreter):
    """Runs a graph and notes the sizes of what meets in products."""

    def __init__(self, observer: _Observer):
        super().__init__(observer.walk.program.graph_module)
        self.observer, self.values = observer, {}

    def run_node(self, node):
        result = super().run_node(node)
        scale = self.observer.walk.scale_of(node)
        if isinstance(scale, Choice) and isinstance(result, Tensor):
            chosen = result.reshape(-1).long().tolist()  # counts may be kept as floats
            self.values.update(zip(scale.variables.reshape(-1).tolist(), chosen))
            self.observer.walk.equations.choices.settle_groups(self.values)
        if isinstance(node.target, torch._ops.OpOverload):
            rule = find_rule(node.target)
            room = rule.__module__.rpartition(".")[2] if rule is not None else ""
            if room in _PRODUCTS and rule.__name__ not in _NO_PRODUCTS:
                self._meet(node)
        return result

    def _meet(self, node) -> None:
        """Operands of a product that grow with a generator, and others that shrink with it."""
        operands = []
        for argument in node.all_input_nodes:
            scale, value = self.observer.walk.scale_of(argument), self.env[argument]
            plain = isinstance(scale, LogScale) and not isinstance(scale, Choice)
            if plain and isinstance(value, Tensor) and value.is_floating_point():
                lines = self.observer.lines(scale, self.values)
                operands.append([_Side(value, *own) for own in lines])
        seen = self.observer.seen
        for one in operands:
            for other in operands:
                pairs = ((a, b) for a in one for b in other if one is not other)
                for a, b in pairs:
                    both = a.signs(seen.sign, 1) & b.signs(seen.sign, -1)
                    a.note(seen, 0, both)
                    b.note(seen, 1, both)


_TOGETHER = 1 << 16
"""Up to this many entries, what two terms do to one entry is added up."""

_PRODUCTS = ("products", "attention")
"""The rooms of rules whose operands meet in products, but for some."""

_NO_PRODUCTS = ("embedding", "embedding_bag", "weight_norm")


class _Side:
    """One operand: its magnitudes by what scales them."""

    def __init__(self, value: Tensor, lines: sparse.csr_array, which: np.ndarray):
        self.lines = lines
        wide = value.detach().abs().to(torch.float64)
        lead = wide.ndim - which.ndim
        axes = [a for a in range(wide.ndim) if a < lead or which.shape[a - lead] == 1]
        kept = which.reshape(-1)
        count = wide.numel() // max(len(kept), 1)
        largest = (wide.amax(axes) if axes else wide).reshape(-1).cpu().numpy()
        sums = (wide.sum(axes) if axes else wide).reshape(-1).cpu().numpy()
        self.largest, self.sums = np.zeros(lines.shape[0]), np.zeros(lines.shape[0])
        np.maximum.at(self.largest, kept, largest)
        np.add.at(self.sums, kept, sums)
        self.numbers = count * np.bincount(kept, minlength=lines.shape[0])

    def signs(self, sign: np.ndarray, side: int) -> np.ndarray:
        """Generators of mappings with which entries grow (1) or shrink (−1) from the source."""
        coo, found = self.lines.tocoo(), np.zeros(len(sign), dtype=bool)
        found[coo.col[side * coo.data * sign[coo.col] > 0]] = True
        return found

    def note(self, seen: _Seen, side: int, generators: np.ndarray) -> None:
        """Hand the sizes of some generators' entries over."""
        coo = self.lines.tocoo()
        own = (1 - 2 * side) * coo.data * seen.sign[coo.col] > 0
        own &= generators[coo.col]
        line, column, data = coo.row[own], coo.col[own], coo.data[own]
        seen.add(
            side, column, data, self.largest[line], self.sums[line], self.numbers[line]
        )
