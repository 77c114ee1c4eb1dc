"""The embedded data: scikit-learn's handwritten digits, and a small network trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from quotientnet.training import loop

__all__ = ["Digits", "load_digits", "make_network", "make_normalised_network", "train"]


@dataclass(frozen=True)
class Digits:
    """1,797 images of 8×8 pixels in [0, 1], split at random into four fifths and one fifth."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor


def load_digits(seed: int = 0, dtype=torch.float64, device="cpu") -> Digits:
    """The digits, from scikit-learn's own copy; nothing is downloaded.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "load_digits needs scikit-learn: pip install quotientnet[examples]"
        ) from error
    bunch = load()
    order = torch.randperm(
        len(bunch.target), generator=torch.Generator().manual_seed(seed)
    )
    inputs = torch.tensor(bunch.data / 16, dtype=dtype)[order].to(device)
    targets = torch.tensor(bunch.target)[order].to(device)
    cut = len(order) * 4 // 5
    return Digits(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:])


def make_network(seed: int = 0, dtype=torch.float64, device="cpu") -> nn.Sequential:
    """A ReLU network 64-32-32-10 with biases; its random start depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )
    return network.to(device, dtype)


def make_normalised_network(
    seed: int = 0, dtype=torch.float64, device="cpu"
) -> nn.Sequential:
    """A ReLU network of two batch-normalised convolutions and a dense layer, seeded.

    Its ``eps`` has no effect, so that the scaling symmetry of the filters is exact.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4, eps=1e-30),
            nn.ReLU(),
            nn.Conv2d(4, 8, 3, bias=False),
            nn.BatchNorm2d(8, eps=1e-30),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 10),
        )
    return network.to(device, dtype)


def train(
    network: nn.Module,
    digits: Digits,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float = 1e-2,
    seed: int = 0,
    progress: bool = False,
) -> None:
    """Train in place with Adam and a cosine schedule on shuffled batches.

    Args:
        network: The network.
        digits: The data.
        batch_size: Images a step; the last step of an epoch may have fewer.
        epochs: Passes over the training images.
        learning_rate: At the start; it falls to 0.
        seed: Of the shuffling.
        progress: Whether to draw a progress bar, on a terminal only.

    Raises:
        ValueError: ``batch_size`` or ``epochs`` below 1.
        NotFiniteError: The loss or a gradient is no longer finite; names step and parameter, and
            the network is what it was before.
    """
    if batch_size < 1 or epochs < 1:
        raise ValueError(
            f"train: batch_size={batch_size} and epochs={epochs} must be at least 1"
        )
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = digits.train_inputs, digits.train_targets
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    steps = epochs * ceil(len(targets) / batch_size)

    def shuffled(epoch: int):
        order = torch.randperm(len(targets), generator=generator).to(targets.device)
        return ((inputs[rows], targets[rows]) for rows in order.split(batch_size))

    loop.train(
        network, optimizer, nn.functional.cross_entropy, shuffled, epochs=epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        progress=f"training, batch {batch_size}" if progress else False,
    )  # fmt: skip
