"""Random architectures: networks that are programs of five to forty operations."""

import quotientnet.testing.drawn.axes  # noqa: F401
import quotientnet.testing.drawn.entrywise  # noqa: F401
import quotientnet.testing.drawn.layers  # noqa: F401
import quotientnet.testing.drawn.normalisations  # noqa: F401
import quotientnet.testing.drawn.products  # noqa: F401
import quotientnet.testing.drawn.weights  # noqa: F401
from quotientnet.testing.drawn.drawing import (
    architectures,
    random_architecture,
)
from quotientnet.testing.drawn.effects import without_effect
from quotientnet.testing.drawn.minimise import minimised
from quotientnet.testing.drawn.program import Architecture, Step

__all__ = [
    "Step", "Architecture", "architectures", "random_architecture", "minimised", "without_effect",
]  # fmt: skip
