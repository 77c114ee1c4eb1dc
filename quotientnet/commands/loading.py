"""A user's model, data, loss and checkpoint from what was typed."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from quotientnet.commands.refusal import Refusal

__all__ = ["load_function", "load_model", "load_loss", "load_state"]

_INSIDE = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint of more than weights has its weights."""

_PREFIX = "module."
"""What ``nn.DataParallel`` puts before every name."""

_FOLDER = 0x10
"""The bit of a zip record's attributes that makes it one."""

_TRAILING = (
    "Please file an issue",
    "This is an internal miniz error",
    "Please use `torch.serialization",
)
"""Where torch's messages turn from what it met to what else to do, which is not for here."""


def load_function(option: str, place: str):
    """The object that ``package.module:name`` names; the current directory is searched first.

    Raises:
        Refusal: There is none, or importing it fails.
    """
    module, separator, name = place.partition(":")
    if not (module and separator and name):
        raise Refusal(f"{option} {place}: must be package.module:function")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise Refusal(f"{option} {place}: {type(error).__name__}: {error}") from error
    return found


def call(option: str, place: str):
    """What the function that ``package.module:function`` names returns."""
    function = load_function(option, place)
    if not callable(function) or isinstance(function, nn.Module):
        return function
    try:
        return function()
    except Exception as error:
        raise Refusal(
            f"{option} {place}: the function raised {type(error).__name__}: {error}"
        ) from error


def load_model(place: str, checkpoint: Path | None) -> nn.Module:
    """The user's model with the weights of a checkpoint.

    Raises:
        Refusal: It is no module, or the checkpoint does not fit.
    """
    model = call("--model", place)
    if not isinstance(model, nn.Module):
        raise Refusal(
            f"--model {place}: must return a torch.nn.Module, it returned {type(model).__name__}"
        )
    if checkpoint is not None:
        _fill(model, load_state(checkpoint), checkpoint)
    return model


def load_loss(name: str):
    """A loss of ``torch.nn`` by name, or the user's own ``package.module:loss``.

    Raises:
        Refusal: There is no such loss.
    """
    if ":" in name:
        loss = load_function("--loss", name)
        return loss() if isinstance(loss, type) else loss
    kind = getattr(nn, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.modules.loss._Loss)):
        raise Refusal(
            f"--loss {name}: torch.nn has no loss of this name; use one, such as CrossEntropyLoss "
            "or MSELoss, or package.module:loss"
        )
    return kind()


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name. No code in it is ever executed.

    Args:
        path: A ``.safetensors`` file, or one of ``torch.save``, which is read with
            ``weights_only=True``: a state dict, or a dict with one under ``state_dict``,
            ``model_state_dict`` or ``model``.

    Raises:
        Refusal: The file cannot be read, is damaged, declares more than it holds, has code in it,
            or has no state dict.
    """
    if not path.is_file():
        raise Refusal(f"--checkpoint {path}: no such file")
    if not _plausible(path):
        raise Refusal(f"--checkpoint {path}: not a checkpoint that torch.save wrote")
    _require_whole(path)
    found = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if not _is_state(found) and isinstance(found, Mapping):
        found = next((found[k] for k in _INSIDE if _is_state(found.get(k))), found)
    if not _is_state(found):
        raise Refusal(
            f"--checkpoint {path}: holds no state dict, by itself or under one of "
            f"{', '.join(map(repr, _INSIDE))}; save model.state_dict()"
        )
    return dict(found)


def _plausible(path: Path) -> bool:
    """Whether the file begins as one of ``torch.save`` does, with a zip's or a pickle's first
    bytes, or is named as another format."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80"))


def _require_whole(path: Path) -> None:
    """Refuse a zip, as ``torch.save`` makes them, with a bit that has changed, or whose records
    claim more bytes than the file has: they would be allocated. torch looks at neither."""
    if path.suffix == ".safetensors":
        return
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            claimed = sum(record.file_size for record in records)
            if claimed > path.stat().st_size:
                raise Refusal(
                    f"--checkpoint {path}: its records claim {claimed} bytes, more than the file "
                    "has; it is damaged, or compressed as torch.save does not: save it again"
                )
            # torch leaves the memory of what is marked as a folder as it finds it.
            folders = (r.filename for r in records if r.external_attr & _FOLDER)
            damaged = archive.testzip() or next(folders, None)
    except Refusal:
        raise
    except Exception as error:  # zipfile, too, raises any
        raise Refusal(f"--checkpoint {path}: cannot be read: {_reason(error)}") from error
    if damaged is not None:
        raise Refusal(
            f"--checkpoint {path}: is damaged: the record {damaged!r} is not as it was written. "
            "Copy the file again, or save it again without set_crc32_options(False)"
        )


def _is_state(value) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(t, Tensor) for t in value.values())
    )


def _safetensors(path: Path):
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise Refusal(
            f"--checkpoint {path}: this format needs safetensors: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise Refusal(
            f"--checkpoint {path}: not a safetensors file: {error}"
        ) from error


def _torch(path: Path):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of protocols, before it refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refusal(
            f"--checkpoint {path}: refused, and nothing in it was executed: it is damaged, or is a "
            "pickle of more than tensors, which runs code when it is loaded. Save "
            f"model.state_dict(), or safetensors ({_reason(error)})"
        ) from error
    except Exception as error:  # of a damaged file torch's reader raises any
        raise Refusal(
            f"--checkpoint {path}: cannot be read: {type(error).__name__}: {_reason(error)}"
        ) from error


def _reason(error: BaseException) -> str:
    """The line of torch's long message that names what it met."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [
        line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line
    ]
    if named and named[0].endswith("WeightsUnpickler error:"):  # which goes on below
        named = lines[lines.index(named[0]) + 1 :][:1]
    text = (named or lines or [type(error).__name__])[0]
    text = text.rpartition("WeightsUnpickler error:")[2].strip()
    for trailing in _TRAILING:
        text = text.partition(trailing)[0].strip()
    return text[:160].rstrip(" :.") or type(error).__name__


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Whether a tensor has fractions, and whether it has imaginary parts: neither is rounded."""
    return tensor.is_floating_point(), tensor.is_complex()


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    if (
        all(name.startswith(_PREFIX) for name in state)
        and not state.keys() & own.keys()
    ):
        print(
            f"--checkpoint {path}: every name begins with {_PREFIX!r}, as nn.DataParallel writes "
            "them; taken without it",
            file=sys.stderr,
        )
        state = {name.removeprefix(_PREFIX): t for name, t in state.items()}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    other = [
        f"{n} is {tuple(state[n].shape)}, the model has {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    kinds = [
        f"{n} is {state[n].dtype}, the model has {own[n].dtype}"
        for n in own
        if n in state and _kind(state[n]) != _kind(own[n])
    ]
    problems = [
        f"{what} {', '.join(names[:6])}{', …' if len(names) > 6 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("shape:", other),
            ("dtype:", kinds),
        )
        if names
    ]
    if problems:
        raise Refusal(
            f"--checkpoint {path}: does not fit the model: {'; '.join(problems)}"
        )
    model.load_state_dict(state)
