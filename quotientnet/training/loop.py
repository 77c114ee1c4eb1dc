"""A training loop for any optimizer, which stops at the first NaN with the last good state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from quotientnet.options import require_count, require_module
from quotientnet.progress import progress as bar
from quotientnet.training.last_good import LastGood

__all__ = ["train", "History", "NotFiniteError"]


class NotFiniteError(FloatingPointError, RuntimeError):
    """A loss, a gradient or a parameter became NaN or infinite in training.

    Attributes:
        step: The step that found it, counted from 0.
        parameter: The name of the first parameter whose value is not finite, or, if all are, of
            the first whose gradient is not; None if it is the batch, or a computation that has no
            parameter.
    """

    def __init__(self, message: str, step: int, parameter: str | None = None):
        super().__init__(message, step, parameter)
        self.step, self.parameter = step, parameter

    def __str__(self) -> str:
        return self.args[0]


@dataclass(frozen=True)
class History:
    """What happened in training.

    Attributes:
        losses: Every step's loss at the parameters before it, of its batch.
        ends: How many steps had been made at the end of each epoch.
    """

    losses: tuple[float, ...]
    ends: tuple[int, ...]


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable,
    batches: Iterable | Callable[[int], Iterable],
    *,
    epochs: int,
    scheduler=None,
    progress: bool | str = False,
    on_epoch: Callable[[int, list[float]], object] | None = None,
) -> History:
    """Train in place, and stop with the last good state where a number is no longer finite.

    Every step hands the optimizer a closure, so that any of torch's, of geoopt's and of this
    package's will do. Mode and device are left as they are: call ``module.train()`` before. No
    gradients are left behind.

    When a loss or a gradient is NaN or infinite, the module, the optimizer and the schedule are put
    back to the start of the last step in which they were finite: before the update that led here.
    If the batch has NaN, no update is to blame, and they are what they were before the batch. After
    any other exception, also an interrupt in the middle of an update, they are what they were at
    the start of the step.

    Args:
        module: What is trained.
        optimizer: Moves the module's parameters, all or some of them, or a point that is bound to
            it.
        loss: ``loss(outputs, targets)``, a scalar.
        batches: Pairs ``(inputs, targets)`` on the module's device, gone through anew each epoch,
            as a list or a ``DataLoader`` can be; or a function that returns them from the number
            of the epoch, counted from 0. In place of a pair, a function of nothing that draws one
            each time that the optimizer evaluates the loss, as :class:`EntropySGD` may want.
        epochs: How often.
        scheduler: One of ``torch.optim.lr_scheduler``, stepped after each **step**. To step one
            each epoch, do so in ``on_epoch``.
        progress: Whether to draw a bar over the epochs, on a terminal only; or its label.
        on_epoch: Called after each epoch with its number, from 0, and the losses of its steps.

    Returns:
        The losses.

    Raises:
        NotFiniteError: A loss, a gradient or, at the end of an epoch, a parameter or a running
            statistic is NaN or infinite.
        TypeError: A batch that is no pair; a loss that is no scalar; no number of epochs; a
            module, loss, optimizer, schedule or ``on_epoch`` that is none, or a schedule that needs
            a loss.
        ValueError: ``epochs`` below 1; a loss that depends on no parameter; an uninitialised
            module; an epoch without batches, such as the second one through a generator.

    Note:
        Memory for one more copy of the parameters and of the optimizer's state and two of the
        buffers. Each evaluation of the closure adds a pass over the gradients and, on a GPU, one
        synchronisation; each step a copy of that state.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> from quotientnet.digits import load_digits, make_network
        >>> digits, model = load_digits(), make_network()
        >>> batches = [(digits.train_inputs, digits.train_targets)]
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> history = qn.training.train(
        ...     model, optimizer, torch.nn.functional.cross_entropy, batches, epochs=20)
        >>> len(history.losses), history.losses[-1] < history.losses[0]
        (20, True)
    """
    epochs = require_count(epochs, "train", "epochs")
    for name, parameter in require_module(module, "train").named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"train: {name!r} is uninitialised; run the module once")
    _require_kinds(optimizer, scheduler)
    _require_callables(loss, on_epoch)
    _require_repeatable(batches, epochs)
    run, ends = _Run(module, optimizer, loss, scheduler), []
    label = progress if isinstance(progress, str) else "training"
    rounds = range(epochs)
    for epoch in bar(rounds, label) if progress else rounds:
        start = len(run.losses)
        for batch in batches(epoch) if callable(batches) else batches:
            run.step(batch)
        if len(run.losses) == start:
            raise ValueError(
                f"train: epoch {epoch} has no batches; pass a list or a DataLoader, which can be "
                "gone through again, or a function that returns them"
            )
        run.require_finite_state()
        ends.append(len(run.losses))
        if on_epoch is not None:
            on_epoch(epoch, run.losses[start:])
    run.forget_gradients()
    return History(tuple(run.losses), tuple(ends))


def _require_callables(loss, on_epoch) -> None:
    """Refuse before the first step what would fail after it."""
    if isinstance(loss, type) or not callable(loss):
        got = f"the class {loss.__name__}" if isinstance(loss, type) else type(loss).__name__
        raise TypeError(
            f"train: loss must be a function of outputs and targets, such as "
            f"nn.CrossEntropyLoss(), got {got}"
        )
    if on_epoch is not None and not callable(on_epoch):
        raise TypeError(
            f"train: on_epoch must be a function of a number and losses, got "
            f"{type(on_epoch).__name__}"
        )


class _Run:
    """Steps, each made whole or not at all."""

    def __init__(self, module: nn.Module, optimizer, loss: Callable, scheduler):
        self.module, self.optimizer, self.loss = module, optimizer, loss
        self.scheduler, self.losses = scheduler, []
        self._good = LastGood(module, optimizer, scheduler)
        self._parameters = list(module.parameters())
        self._judged = False  # whether this step's loss and gradient were finite
        self._pair = ()

    def step(self, batch) -> None:
        """One step on one batch."""
        self._judged = False
        self._good.begin()
        try:
            self.optimizer.step(lambda: self._evaluate(batch))
            if self.scheduler is not None:
                self.scheduler.step()
        except FloatingPointError as error:
            raise self._not_finite(error) from error
        except BaseException:
            self._start_again()
            raise
        self.losses.append(self._loss)

    def require_finite_state(self) -> None:
        """Refuse an update after which no loss was computed that could have shown it.

        Raises:
            NotFiniteError: A parameter or a running statistic is NaN or infinite.
        """
        statistics = [b for b in self.module.buffers() if b.is_floating_point()]
        if not torch.isfinite(
            _size([p.detach() for p in self._parameters] + statistics)
        ):
            last = len(self.losses) - 1
            named = [*self.module.named_parameters(), *self.module.named_buffers()]
            name = next(name for name, each in named if not _finite(each))
            self._good.restore()
            raise NotFiniteError(
                f"train: step {last} made {name!r} NaN or infinite; lower "
                "the learning rate, or look for infinite entries in the batches. The module and "
                "the optimizer are what they were before it",
                last,
                name,
            )

    @torch.enable_grad()
    def _evaluate(self, batch) -> Tensor:
        """The closure."""
        self._pair = inputs, targets = _pair(batch() if callable(batch) else batch)
        self.forget_gradients()
        loss = self.loss(self.module(inputs), targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(
                f"train: loss must return a scalar tensor, got {got}; take its mean, and return "
                "the tensor that backward() starts from"
            )
        if not loss.requires_grad:
            raise ValueError(
                "train: the loss depends on no parameter that requires a gradient; is the module "
                "frozen, or were its outputs detached?"
            )
        loss.backward()
        value = loss.detach().reshape(())
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        value, size = torch.stack([value, _size(gradients).to(value)]).tolist()
        if not abs(value) + size < inf:
            raise FloatingPointError(
                f"the loss is {value}"
                if not abs(value) < inf
                else "a gradient is NaN or infinite"
            )
        if not self._judged:
            self._good.keep()
            self._judged, self._loss = True, value
        return loss

    def forget_gradients(self) -> None:
        """Leave no gradients behind, neither of what the optimizer moves nor of the rest."""
        self.optimizer.zero_grad()
        for parameter in self._parameters:
            parameter.grad = None

    def _start_again(self) -> None:
        """The state at the start of this step."""
        if self._judged:
            self._good.restore()
        else:
            self._good.undo_step()

    def _not_finite(self, error) -> NotFiniteError:
        """Put the last good state back, and say who is to blame."""
        step, values = len(self.losses), _first(self.module, lambda p: p)
        if values is None and _has_nan(self._pair):
            self._start_again()
            self.forget_gradients()
            return NotFiniteError(
                f"train: step {step}: the batch has NaN entries. The module and the optimizer are "
                "what they were before it",
                step,
            )
        name = values or _first(self.module, lambda p: p.grad)
        self._good.restore()
        self.forget_gradients()
        what = (
            f"train: step {step}: {error}; lower the learning rate, or is there an infinite entry "
            "in the batch?"
        )
        which = "parameter" if values else "gradient"
        where = f" (first {which} that is not finite: {name!r})" if name else ""
        return NotFiniteError(
            f"{what}{where}. The module and the optimizer are what they were at the start of the "
            "last step with a finite loss and gradient",
            step,
            name,
        )


def _require_kinds(optimizer, scheduler) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "train: optimizer must be one, such as torch.optim.Adam(module.parameters()), got "
            f"{optimizer!r}"
        )
    by_loss = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    if scheduler is not None and (by_loss or not hasattr(scheduler, "step")):
        raise TypeError(
            f"train: scheduler must be one that is stepped without a loss, got {scheduler!r}; "
            "step others in on_epoch"
        )


def _require_repeatable(batches, epochs: int) -> None:
    if isinstance(batches, Iterator) and epochs > 1:
        raise ValueError(
            "train: batches can be gone through only once, but there are "
            f"{epochs} epochs; pass a list or a DataLoader, or a function that returns them"
        )


def _pair(batch) -> tuple:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"a {type(batch).__name__}"
        got += f" of {len(batch)}" if isinstance(batch, (tuple, list, dict)) else ""
        raise TypeError(
            f"train: a batch must be a pair (inputs, targets), got {got}; one batch alone is "
            "[(inputs, targets)], and what is more complicated needs a loop of its own"
        )
    return tuple(batch)


def _size(tensors: list[Tensor]) -> Tensor:
    """The largest absolute entry; NaN if there is any."""
    return nn.utils.get_total_norm([t for t in tensors if t.numel()], norm_type=inf)


def _finite(tensor) -> bool:
    return not isinstance(tensor, Tensor) or bool(torch.isfinite(tensor).all())


def _has_nan(batch) -> bool:
    leaves = [x for x in pytree.tree_leaves(batch) if isinstance(x, Tensor)]
    return any(bool(torch.isnan(x).any()) for x in leaves)


def _first(module: nn.Module, part: Callable) -> str | None:
    """The name of the first parameter of which a part is not finite."""
    named = module.named_parameters()
    return next((name for name, p in named if not _finite(part(p))), None)
