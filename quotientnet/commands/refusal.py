"""The one way in which a command ends early."""

__all__ = ["Refusal"]


class Refusal(ValueError):
    """What is wrong with an option, for the terminal; the exit status is 2."""
