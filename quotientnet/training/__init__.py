"""Training: optimisers on quotients, and the search for flat minima."""

from quotientnet.training.adam import RiemannianAdam
from quotientnet.training.binding import BoundParameter, bind
from quotientnet.training.clipping import clip_grad_norm_
from quotientnet.training.decay import Decay, decay
from quotientnet.training.sgd import RiemannianSGD

__all__ = [
    "bind", "BoundParameter", "RiemannianSGD", "RiemannianAdam", "clip_grad_norm_", "decay",
    "Decay",
]  # fmt: skip
