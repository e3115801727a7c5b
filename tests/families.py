"""Hypothesis strategies: every Gaussian diffusion with parameters of its own, and times in it."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from scoresde import (
    DDPM,
    EDMSDE,
    NCSN,
    VESDE,
    VPSDE,
    CosineSDE,
    GaussianSDE,
    RectifiedFlow,
    SubVPSDE,
)


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


def logs(low: float, high: float) -> st.SearchStrategy[float]:
    return floats(math.log(low), math.log(high)).map(math.exp)


def tables(low: float, high: float, longest: int = 12) -> st.SearchStrategy[torch.Tensor]:
    entries = st.lists(logs(low, high), min_size=2, max_size=longest, unique=True)
    return entries.map(lambda values: torch.tensor(values, dtype=torch.float64))


def spread(sigmas: torch.Tensor) -> torch.Tensor:
    """A ladder whose neighbours differ by 1 % at least."""
    ladder = sigmas.sort().values
    return ladder * 1.01 ** torch.arange(len(ladder), dtype=torch.float64)


ends = floats(0.5, 3.0)
rates = st.tuples(floats(0.0, 5.0), floats(0.1, 30.0)).map(lambda r: (r[0], r[0] + r[1]))
levels = st.tuples(logs(1e-3, 0.5), logs(2.0, 1e3)).map(lambda r: (r[0], r[0] * r[1]))

STRATEGIES: dict[str, st.SearchStrategy[GaussianSDE]] = {
    "VPSDE": st.builds(lambda r, T: VPSDE(*r, T=T), rates, ends),
    "SubVPSDE": st.builds(lambda r, T: SubVPSDE(*r, T=T), rates, ends),
    "VESDE": st.builds(lambda r, T: VESDE(*r, T=T), levels, ends),
    "CosineSDE": st.builds(CosineSDE, s=floats(0.0, 0.1), T=floats(0.5, 0.999)),
    "EDMSDE": st.builds(lambda r: EDMSDE(*r), levels),
    "RectifiedFlow": st.builds(RectifiedFlow, T=floats(0.5, 0.9999)),
    "DDPM": st.builds(DDPM, tables(1e-4, 0.9), T=ends),
    "NCSN": st.builds(NCSN, tables(1e-3, 1e2).map(spread), T=ends),
}
"""One strategy per class of the family."""


@st.composite
def sde_and_times(
    draw: st.DrawFn, sdes: st.SearchStrategy[GaussianSDE], count: int = 1
) -> tuple[GaussianSDE, list[float]]:
    """A diffusion and ascending times in [1e-5 T, T]; gaps are parts of the rest, none tiny."""
    sde = draw(sdes)
    first = draw(logs(1e-5, 1.0 if count == 1 else 0.5))
    gaps = draw(st.lists(floats(0.05, 1.0), min_size=count, max_size=count))
    parts = [sum(gaps[:i]) / sum(gaps) for i in range(count)]
    return sde, [sde.T * (first + (1 - first) * part) for part in parts]
