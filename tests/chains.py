"""The two groups of the papers for a chain of layers, from shapes and names alone.

A reference for ``discover`` that never looks at a graph, and groups for tests that need no module.
"""

from __future__ import annotations

from collections.abc import Sequence

from quotientnet.group import ScalingGroup
from quotientnet.layout import ParameterLayout
from quotientnet.units import Scale, Unit

__all__ = ["layer_scale_group", "node_wise_group"]


def layer_scale_group(
    layout: ParameterLayout, layers: Sequence[str] | None = None
) -> ScalingGroup:
    """One scale a hidden layer: rangamani2019 Prop. 2.1, and §2.1 with biases.

    For a chain of dense and convolutional layers with positively homogeneous activations,
    flattening and batch normalisation between them. Each generator scales a layer's weight and
    bias by ``e^t`` and the next layer's weight by ``e^{-t}``; batch normalisation adds one
    generator for the weight and bias before it and its running statistics.

    Args:
        layout: The coordinates.
        layers: Names of the layers with parameters, in the order they are applied; by default
            the order of registration. Leave out activations with parameters (PReLU). The chain is
            taken at your word: nothing looks at the module's forward, so check that the loss at
            ``group.act(w, group.random())`` is the loss at ``w``. Transposed convolutions, biases
            or layers that are not in the layout (frozen ones), and normalisation without running
            statistics cannot be told from shapes; write their groups from units.

    Returns:
        The group; its generators are named after the layer whose output they scale.

    Raises:
        ValueError: A layer that is not in the layout, layers that do not fit together, a layer
            used twice, or, by default, a one-dimensional weight without running statistics.
        TypeError: ``layout`` is not a layout.
    """
    return ScalingGroup.from_units(layout, _chain(layout, layers, uniform=True))


def node_wise_group(
    layout: ParameterLayout, layers: Sequence[str] | None = None
) -> ScalingGroup:
    """One scale a hidden unit or channel: rangamani2019 §6, tsuzuku2019 §5.1.

    As :func:`layer_scale_group`, with one generator a channel: it scales a row of the layer's
    weight and an entry of its bias by ``e^t``, and the channel's columns of the next layer's
    weight by ``e^{-t}``.
    """
    return ScalingGroup.from_units(layout, _chain(layout, layers, uniform=False))


def _chain(
    layout: ParameterLayout, layers: Sequence[str] | None, uniform: bool
) -> list[Unit]:
    if not isinstance(layout, ParameterLayout):
        raise TypeError(
            f"chain: layout must be a ParameterLayout, got {type(layout).__name__}; use "
            "ParameterLayout.from_module(module)"
        )
    if layers is None:
        layers = _layers(layout)
        _refuse_what_is_no_chain(layout, layers)
    for layer in layers:
        if not (_weight(layout, layer) in layout or _is_norm(layout, layer)):
            raise ValueError(
                f"chain: layer {layer!r} has no weight in the layout; its layers are "
                f"{', '.join(repr(name) for name in _layers(layout))}"
            )
    units = []
    for producer, consumer in zip(layers, layers[1:]):
        rows = [
            name
            for name in (_weight(layout, producer), _member(producer, "bias"))
            if name in layout
        ]
        if _is_norm(layout, consumer):
            statistics = (("running_mean", 1), ("running_var", 2))
            others = [
                Scale(_member(consumer, name), 0, power) for name, power in statistics
            ]
            others = [scale for scale in others if scale.name in layout]
        else:
            others = [Scale(_weight(layout, consumer), 1, -1)]
        if rows:
            scales = (*(Scale(name, 0) for name in rows), *others)
            units.append(_unit(producer, layout[rows[0]].shape[0], scales, uniform))
    return units


def _refuse_what_is_no_chain(layout: ParameterLayout, layers: Sequence[str]) -> None:
    """What shapes and names alone show not to be a chain of the layers described."""
    if layout.aliases:
        raise ValueError(
            f"chain: {next(iter(layout.aliases))!r} is tied or used twice; write the group from "
            "units with ScalingGroup.from_units"
        )
    for layer in layers:
        statistics = _member(layer, "running_mean") in layout
        if _is_norm(layout, layer) and not statistics:
            raise ValueError(
                f"chain: layer {layer!r} has a one-dimensional weight and no running statistics; "
                "pass layers=[...] in the order of application, without activations such as PReLU "
                "and with it only if it is batch normalisation"
            )


def _unit(name: str, channels: int, scales: tuple[Scale, ...], uniform: bool) -> Unit:
    if uniform:
        return Unit(name, 1, tuple(Scale(s.name, None, s.exponent) for s in scales))
    return Unit(name, channels, scales)


def _layers(layout: ParameterLayout) -> list[str]:
    """The layers of a layout in order of registration."""
    layers = list(
        dict.fromkeys(_layer(e.name) for e in layout.entries if not e.passive)
    )
    for entry in layout.entries:
        if entry.passive and _layer(entry.name) not in layers:
            raise ValueError(
                f"chain: normalisation {_layer(entry.name)!r} has no parameters that tell its "
                "place; pass layers=[...] in the order of application"
            )
    return layers


def _layer(name: str) -> str:
    prefix, _, member = name.rpartition(".")
    return (
        prefix if member in ("weight", "bias", "running_mean", "running_var") else name
    )


def _member(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _weight(layout: ParameterLayout, layer: str) -> str:
    return _member(layer, "weight") if _member(layer, "weight") in layout else layer


def _is_norm(layout: ParameterLayout, layer: str) -> bool:
    weight = _weight(layout, layer)
    one_dimensional = weight in layout and len(layout[weight].shape) == 1
    return one_dimensional or _member(layer, "running_mean") in layout
