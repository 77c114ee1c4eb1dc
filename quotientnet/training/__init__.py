"""Training: optimisers on quotients, and the search for flat minima."""

from quotientnet.training.binding import BoundParameter, bind
from quotientnet.training.sgds import SGDS

__all__ = ["bind", "BoundParameter", "SGDS"]
