"""A module's named parameters as one flat vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from quotientnet.options import require_kind, require_module
from quotientnet.wrappers import unwrapped

__all__ = ["Entry", "ParameterLayout", "tensors_of"]

_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Entry:
    """One tensor of a layout: its name in the module, its shape, its place in the vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    passive: bool

    @property
    def numel(self) -> int:
        """The number of coordinates."""
        return prod(self.shape)

    @property
    def slice(self) -> slice:
        """The coordinates' place along the last dimension of a flat vector."""
        return slice(self.start, self.start + self.numel)


class ParameterLayout:
    """Names, shapes and order of the coordinates of a flat vector ``w`` of shape ``(..., size)``.

    Parameters come first, *passive* coordinates after them. A passive coordinate (a running
    statistic of batch normalisation) belongs to the point, is moved by a symmetry group, and
    is never a direction: tangent vectors are zero there.

    Layouts are immutable and compare by value.

    Args:
        parameters: Shape of each parameter, by name, in the order of the flat vector.
        passive: Shape of each passive tensor, by name.
        aliases: For tied parameters, each further name and the name it is stored under.

    Raises:
        TypeError: Shapes or aliases that are no mapping from names.
        ValueError: No parameters, a length that is negative, or a name given twice.

    Example:
        >>> import torch
        >>> layout = ParameterLayout({"weight": (2, 3), "bias": (2,)})
        >>> layout.size, layout.names
        (8, ('weight', 'bias'))
        >>> layout.unflatten(torch.arange(8.0))["bias"]
        tensor([6., 7.])
    """

    def __init__(
        self,
        parameters: Mapping[str, Sequence[int]],
        passive: Mapping[str, Sequence[int]] | None = None,
        aliases: Mapping[str, str] | None = None,
    ):
        passive = {} if passive is None else passive
        aliases = {} if aliases is None else aliases
        for name, given in (
            ("parameters", parameters), ("passive", passive), ("aliases", aliases)
        ):  # fmt: skip
            require_kind(given, Mapping, "ParameterLayout", name)
        if not parameters:
            raise ValueError("ParameterLayout: needs at least one parameter, got none")
        twice = sorted(set(parameters) & set(passive))
        if twice:
            raise ValueError(
                f"ParameterLayout: {twice[0]!r} is both parameter and passive"
            )
        for name, shape in (*parameters.items(), *passive.items()):
            _require_shape(name, shape)
        entries, start = [], 0
        for is_passive, group in ((False, parameters), (True, passive)):
            for name, shape in group.items():
                entries.append(
                    Entry(name, tuple(int(s) for s in shape), start, is_passive)
                )
                start += entries[-1].numel
        self.entries: tuple[Entry, ...] = tuple(entries)
        self.size: int = start
        self.aliases: dict[str, str] = dict(aliases)
        self._by_name = {entry.name: entry for entry in entries}
        self._sizes = [entry.numel for entry in entries]

    @classmethod
    def from_module(
        cls, module: nn.Module, *, include_frozen: bool = False
    ) -> ParameterLayout:
        """The layout of a module's parameters, in the order of registration.

        Tied parameters appear once, under their first name. Running statistics of batch and
        instance normalisation become passive coordinates, in either mode of the module. A module
        in ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile`` has the layout of the
        module inside, without a prefix before the names.

        Args:
            module: Any module.
            include_frozen: Whether parameters with ``requires_grad=False`` take part.

        Raises:
            TypeError: ``module`` is no module.
            ValueError: No parameters; an uninitialised parameter; a parameter or running
                statistic that is not float32 or float64, or whose dtype or device differs from
                the first one's.
        """
        require_module(module, "ParameterLayout.from_module")
        module = unwrapped(module)
        first_names: dict[int, str] = {}
        parameters: dict[str, Tensor] = {}
        aliases: dict[str, str] = {}
        for name, tensor in module.named_parameters(remove_duplicate=False):
            if not (tensor.requires_grad or include_frozen):
                continue
            if id(tensor) in first_names:
                aliases[name] = first_names[id(tensor)]
            else:
                first_names[id(tensor)] = name
                parameters[name] = tensor
        if not parameters:
            some = any(True for _ in module.parameters())
            remedy = (
                "that require a gradient; pass include_frozen=True to take the frozen ones"
                if some and not include_frozen
                else "at all; there is nothing to be a point of"
            )
            raise ValueError(
                f"ParameterLayout.from_module: {type(module).__name__} has no parameters {remedy}"
            )
        passive = _running_statistics(module)
        _check_homogeneous({**parameters, **passive})
        shapes = {name: tensor.shape for name, tensor in parameters.items()}
        return cls(
            shapes, {name: tensor.shape for name, tensor in passive.items()}, aliases
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of parameters and passive tensors, in order."""
        return tuple(self._by_name)

    @property
    def parameter_size(self) -> int:
        """The number of coordinates that are parameters; the rest are passive."""
        return sum(entry.numel for entry in self.entries if not entry.passive)

    def __getitem__(self, name: str) -> Entry:
        name = self.aliases.get(name, name)
        if name not in self._by_name:
            raise KeyError(
                f"{name!r} is not in the layout; it has {', '.join(self.names)}"
            )
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name or name in self.aliases

    def split(self, w: Tensor) -> tuple[Tensor, ...]:
        """Views of ``w``, shape ``(..., size)``, as one ``(..., numel)`` piece an entry."""
        self.check(w, "ParameterLayout.split")
        return w.split(self._sizes, dim=-1)

    def unflatten(self, w: Tensor) -> dict[str, Tensor]:
        """Views of ``w``, shape ``(..., size)``, by name and of shape ``(..., *shape)``.

        Raises:
            TypeError: ``w`` is no tensor.
            ValueError: The last dimension of ``w`` is not ``size``.
        """
        self.check(w, "ParameterLayout.unflatten")
        batch, pieces = w.shape[:-1], w.split(self._sizes, dim=-1)
        return {
            entry.name: piece.reshape((*batch, *entry.shape))
            for entry, piece in zip(self.entries, pieces)
        }

    def flatten(self, tensors: nn.Module | Mapping[str, Tensor]) -> Tensor:
        """One new flat vector from a module, or from tensors by name (with leading batch
        dimensions, if all have the same).

        Raises:
            TypeError: ``tensors`` is neither a module nor a mapping to tensors.
            ValueError: A tensor is missing, or its trailing shape is not the layout's; dtypes
                or devices are mixed.
        """
        if isinstance(tensors, nn.Module):
            tensors = tensors_of(tensors)
        if not isinstance(tensors, Mapping):
            raise TypeError(
                "ParameterLayout.flatten: tensors must be a torch.nn.Module or tensors by name, "
                f"got {type(tensors).__name__}"
            )
        pieces = {}
        for entry in self.entries:
            if entry.name not in tensors:
                raise ValueError(
                    f"ParameterLayout.flatten: {entry.name!r} is missing; this layout needs "
                    f"{', '.join(self.names)}"
                )
            tensor = require_kind(
                tensors[entry.name], Tensor, "ParameterLayout.flatten", repr(entry.name)
            ).detach()
            batch = tensor.shape[: tensor.ndim - len(entry.shape)]
            if (*batch, *entry.shape) != tuple(tensor.shape):
                raise ValueError(
                    f"ParameterLayout.flatten: {entry.name!r} has shape {tuple(tensor.shape)}, "
                    f"the layout has {entry.shape}"
                )
            pieces[entry.name] = tensor.reshape(*batch, entry.numel)
        _check_homogeneous(pieces)
        return torch.cat(list(pieces.values()), dim=-1)

    def substitutes(self, module: nn.Module, w: Tensor) -> dict[str, Tensor]:
        """What stands in for a module's parameters and buffers in ``torch.func.functional_call``.

        Each module is named once, because ``functional_call`` leaves its tensors in a module that
        it meets under two names: pass ``tie_weights=False``. Buffers are copies, which a forward
        in train mode may write to.

        Args:
            module: A module with this layout.
            w: A point, shape ``(size,)``.

        Raises:
            TypeError: ``module`` is no module, or ``w`` no tensor.
            ValueError: The last dimension of ``w`` is not ``size``.
        """
        require_module(module, "ParameterLayout.substitutes")
        views, tensors = self.unflatten(w), {}
        for prefix, child in module.named_modules():
            prefix = f"{prefix}." if prefix else ""
            for member in child._parameters:
                if prefix + member in self:
                    tensors[prefix + member] = views[self[prefix + member].name]
            for member, buffer in child._buffers.items():
                if buffer is not None:
                    # Never differentiated.
                    value = views.get(prefix + member, buffer)
                    tensors[prefix + member] = value.detach().clone()
        return tensors

    @torch.no_grad()
    def assign(self, module: nn.Module, w: Tensor) -> None:
        """Copy ``w``, shape ``(size,)``, into the module's parameters and running statistics.

        Raises:
            TypeError: ``module`` is no module, or ``w`` no tensor.
            ValueError: ``w`` has another shape, or the module does not have this layout; the
                module is then unchanged.
        """
        require_module(module, "ParameterLayout.assign")
        self.check(w, "ParameterLayout.assign")
        if w.ndim != 1:
            raise ValueError(
                f"ParameterLayout.assign: needs one point, got shape {tuple(w.shape)}"
            )
        own, new = tensors_of(module), self.unflatten(w)
        for name, value in new.items():
            if name not in own or own[name].shape != value.shape:
                raise ValueError(
                    f"ParameterLayout.assign: the module's {name!r} does not fit"
                )
        for name, value in new.items():
            own[name].copy_(value)

    def check(self, w: Tensor, caller: str, name: str = "w") -> None:
        """Refuse what is not a tensor with a last dimension of ``size``, in one clear line."""
        if not isinstance(w, Tensor):
            raise TypeError(
                f"{caller}: {name} must be a torch.Tensor, got {type(w).__name__}"
            )
        if w.layout != torch.strided or w.is_meta:
            kind = "on the meta device" if w.is_meta else f"of layout {w.layout}"
            raise ValueError(
                f"{caller}: {name} is {kind}, it must be an ordinary (dense) tensor with values"
            )
        if w.ndim < 1 or w.shape[-1] != self.size:
            passive = self.size - self.parameter_size
            detail = (
                f" ({self.parameter_size} parameters, {passive} running statistics)"
            )
            raise ValueError(
                f"{caller}: {name} has shape {tuple(w.shape)}, it needs a last dimension of "
                f"{self.size}{detail if passive else ''}; layout.flatten(module) makes one"
            )
        if w.dtype not in _DTYPES:
            raise ValueError(
                f"{caller}: {name} is {w.dtype}, it must be float32 or float64"
            )

    def mask(self, *names: str) -> Tensor:
        """The coordinates of some tensors, a boolean mask of shape ``(size,)``.

        Args:
            names: Names of tensors, or of modules, which stand for all that is inside.

        Raises:
            KeyError: The layout has nothing of that name.
        """
        mask = torch.zeros(self.size, dtype=torch.bool)
        for name in names:
            inside = [e for e in self.entries if e.name.startswith(f"{name}.")]
            for entry in [self[name]] if name in self or not inside else inside:
                mask[entry.slice] = True
        return mask

    def count(self, mask: Tensor) -> dict[str, int]:
        """How often ``mask``, shape ``(..., size)``, is true in each entry where it is at all.

        Raises:
            TypeError: ``mask`` is no tensor.
            ValueError: It has another length or layout, or no values.
        """
        require_kind(mask, Tensor, "ParameterLayout.count", "mask")
        dense = mask.layout == torch.strided and not mask.is_meta
        if not (dense and mask.ndim and mask.shape[-1] == self.size):
            raise ValueError(
                f"ParameterLayout.count: mask must be dense, with a last dimension of {self.size}, "
                f"got shape {tuple(mask.shape)} of layout {mask.layout} on {mask.device}"
            )
        counts = {
            e.name: int(p.sum())
            for e, p in zip(self.entries, mask.split(self._sizes, -1))
        }
        return {name: count for name, count in counts.items() if count}

    def _key(self):
        return (self.entries, tuple(sorted(self.aliases.items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ParameterLayout) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        shapes = ", ".join(f"{entry.name}: {entry.shape}" for entry in self.entries[:6])
        more = ", ..." if len(self.entries) > 6 else ""
        return f"ParameterLayout(size={self.size}, {shapes}{more})"


def _require_shape(name: str, shape) -> None:
    try:
        ok = all(int(length) == length >= 0 for length in shape)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"ParameterLayout: {name!r} must have a shape, a tuple of integers, got {shape!r}"
        ) from error
    if not ok:
        raise ValueError(f"ParameterLayout: {name!r} has shape {tuple(shape)}")


def _running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of a module's normalisation layers, by name."""
    found = {}
    for prefix, child in module.named_modules():
        if isinstance(child, nn.modules.batchnorm._NormBase):
            for name in ("running_mean", "running_var"):
                if getattr(child, name) is not None:
                    found[f"{prefix}.{name}" if prefix else name] = getattr(child, name)
    return found


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers, by every name that they have; of one that is wrapped,
    those of the module inside."""
    module = unwrapped(module)
    named = dict(module.named_parameters(remove_duplicate=False))
    return {**named, **dict(module.named_buffers(remove_duplicate=False))}


def _check_homogeneous(tensors: Mapping[str, Tensor]) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"ParameterLayout: {name!r} is uninitialised; run the module once"
            )
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"ParameterLayout: {name!r} is {tensor.dtype}; only float32 and float64 have a "
                "geometry here: convert it, or set requires_grad=False to leave it out"
            )
        if (tensor.dtype, tensor.device) != (first.dtype, first.device):
            raise ValueError(
                f"ParameterLayout: {name!r} is {tensor.dtype} on {tensor.device}, but "
                f"{first_name!r} is {first.dtype} on {first.device}; one vector needs one dtype "
                "and one device: use module.to(...)"
            )
