"""Spheres in eleven coordinates, small enough for hand-computed values."""

import numpy as np
import torch

import quotientnet as qn

DOUBLE = {"dtype": torch.float64}
ROWS = qn.ParameterLayout({"rows": (2, 2), "bias": (2,), "last": (3,)}, {"mean": (2,)})


def point(*entries, dtype=torch.float64):
    return torch.tensor(entries, dtype=dtype)


def joint():
    """Rows with their biases, of norms 5 and 1; three further parameters of norm 1 together."""
    blocks = {"rows": np.array([[0], [1]]), "bias": np.array([0, 1])}
    return qn.ProductOblique(ROWS, point(5, 1), blocks)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)
