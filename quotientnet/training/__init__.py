"""Training: optimisers on quotients, and the search for flat minima."""

from quotientnet.training.asam import ASAM
from quotientnet.training.binding import BoundParameter, bind
from quotientnet.training.clipping import clip_grad_norm_
from quotientnet.training.decay import Decay, decay
from quotientnet.training.entropy_sgd import EntropySGD
from quotientnet.training.loop import History, NotFiniteError, train
from quotientnet.training.riemannian_adam import RiemannianAdam
from quotientnet.training.riemannian_sgd import RiemannianSGD
from quotientnet.training.sam import SAM
from quotientnet.training.sgds import SGDS

__all__ = [
    "bind", "BoundParameter", "RiemannianSGD", "RiemannianAdam", "decay", "Decay",
    "clip_grad_norm_", "SGDS", "SAM", "ASAM", "EntropySGD", "train", "History", "NotFiniteError",
]  # fmt: skip
