"""How much is tried: which points, in which dtypes and shapes, and how many of each."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import torch

from quotientnet.testing.samples import Sample

__all__ = [
    "Profile", "PROFILES", "REGIMES", "profile_named", "regime_options", "samples_for",
]  # fmt: skip

REGIMES = {
    "plain": "tangent vectors of length 1, scales of about ``e^{±1}`` along the orbit",
    "near": "tangent vectors of length 1e-2",
    "coincident": "points so near that half of the digits are lost: ``10 √eps`` apart",
    "far": "tangent vectors of length 2.5, or 0.8 of the injectivity radius if that is less",
    "antipodal": "one sphere turned to 1e-4 from its antipode, 3e-2 in float32",
    "scaled": "scales over twelve orders of magnitude along the orbit, six in float32",
}
"""The kinds of points that laws are measured on."""


@dataclass(frozen=True)
class Profile:
    """How thoroughly to look.

    Attributes:
        name: ``"quick"``, ``"ci"`` or ``"thorough"``.
        regimes: Which of :data:`~quotientnet.testing.profiles.REGIMES`.
        seeds: How many samples of each.
        dtypes: In which precisions.
        batches: Leading dimensions, in turn.
        elements: How many equivalent points measures are compared at.
        examples: How many examples hypothesis draws.
    """

    name: str
    regimes: tuple[str, ...]
    seeds: int
    dtypes: tuple[torch.dtype, ...]
    batches: tuple[tuple[int, ...], ...]
    elements: int
    examples: int

    def samples(self, manifold, seed: int = 0, device="cpu") -> list[Sample]:
        """The samples of a manifold: every regime that it has, in every dtype.

        Args:
            manifold: A manifold of flat vectors.
            seed: The first seed.
            device: Of the points.
        """
        found = []
        for number in range(seed, seed + self.seeds):
            for dtype in self.dtypes:
                for options in regime_options(manifold, self.regimes, dtype):
                    batch = self.batches[len(found) % len(self.batches)]
                    found.append(
                        Sample(
                            manifold,
                            number,
                            batch,
                            dtype=dtype,
                            device=device,
                            **options,
                        )
                    )
        return found


BOTH = torch.float64, torch.float32
PROFILES = {
    "quick": Profile("quick", ("plain",), 1, BOTH[:1], ((),), 2, 10),
    "ci": Profile("ci", tuple(REGIMES), 1, BOTH, ((), (2,)), 3, 25),
    "thorough": Profile(
        "thorough", tuple(REGIMES), 8, BOTH, ((), (2,), (2, 1)), 10, 250
    ),
}
"""Profiles by name."""


def profile_named(profile: str | Profile, caller: str) -> Profile:
    """The profile of this name, or the one given.

    Raises:
        ValueError: Another name.
    """
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise ValueError(
            f"{caller}: profile must be one of {', '.join(map(repr, PROFILES))}, or a Profile, got "
            f"{profile!r}"
        )
    return PROFILES[profile]


def samples_for(
    manifold, profile, caller: str, seed: int, dtype, device, options: dict
) -> list[Sample]:
    """Those of a profile, or without one a single sample of these options.

    Raises:
        TypeError: Options together with a profile.
    """
    if profile is None:
        return [Sample(manifold, seed, dtype=dtype, device=device, **options)]
    if options:
        raise TypeError(
            f"{caller}: {', '.join(options)} and a profile; the profile chooses the samples"
        )
    return profile_named(profile, caller).samples(manifold, seed, device)


def regime_options(manifold, regimes, dtype) -> list[dict]:
    """The options of a sample for each regime that the manifold has."""
    single = dtype == torch.float32
    radius = getattr(manifold, "injectivity_radius", lambda: inf)()
    known = {
        "plain": {},
        "near": {"length": 1e-2},
        "coincident": {"length": 10 * torch.finfo(dtype).eps ** 0.5},
        "far": {"length": min(2.5, 0.8 * radius)},
    }
    if isfinite(radius) or getattr(manifold, "is_sphere", False):
        known["antipodal"] = {"antipodal": 3e-2 if single else 1e-4}
    if getattr(manifold, "group", None) is not None:
        known["scaled"] = {"spread": 3.5 if single else 7.0}
    return [known[regime] for regime in regimes if regime in known]
