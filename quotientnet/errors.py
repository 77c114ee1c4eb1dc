"""The one error of our own."""

__all__ = ["NotOnManifoldError"]


class NotOnManifoldError(ValueError):
    """A point is not on the manifold, or a vector is not in its tangent space.

    The message names the call, the parameter by its name in the module, the measured
    violation and the remedy.
    """
