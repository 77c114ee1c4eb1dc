"""Translations of parameters that leave the function unchanged."""

from quotientnet.symmetry.translations.translation import (
    Translation,
    derive_translations,
)

__all__ = ["Translation", "derive_translations"]
