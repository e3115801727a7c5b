"""Every Gaussian diffusion with parameters of its own, and times in it."""

from __future__ import annotations

from hypothesis import strategies as st

from scoresde import GaussianSDE
from scoresde.testing.strategies import GAUSSIAN as STRATEGIES
from scoresde.testing.strategies import ascending

__all__ = ["STRATEGIES", "sde_and_times"]


@st.composite
def sde_and_times(
    draw: st.DrawFn, sdes: st.SearchStrategy[GaussianSDE], count: int = 1
) -> tuple[GaussianSDE, list[float]]:
    """A diffusion and ascending times in [1e-5 T, T]."""
    sde = draw(sdes)
    return sde, draw(ascending(count)(sde))
