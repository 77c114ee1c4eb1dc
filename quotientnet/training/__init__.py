"""Training: optimisers on quotients, and the search for flat minima."""

from quotientnet.training.binding import BoundParameter, bind

__all__ = ["bind", "BoundParameter"]
