"""Hypothesis strategies for SDEs, times, mixtures, shapes, samplers and more.

Strategies draw parameters and seeds, never raw noise, so that a failing example shrinks to a simple
one and prints as code that runs::

    @given(st.data())
    def test_something(data):
        sde = data.draw(strategies.sdes())
        t = data.draw(strategies.times(sde))
"""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from hypothesis import strategies as st

from scoresde.flow import Coordinates, LogSNR, Rectified, Standardized, VarianceExploding, Windowed
from scoresde.likelihood import FlowIntegral, ItoEstimate, Method, PathIntegral, VariationalBound
from scoresde.networks import MLP
from scoresde.samplers import (
    DEIS,
    HEUN,
    HEUN3,
    KUTTA3,
    MIDPOINT,
    RALSTON,
    RK4,
    AdamsBashforth,
    Ancestral,
    Angle,
    AnnealedLangevin,
    Churn,
    DDIMNoise,
    EulerMaruyama,
    Exponential,
    Grid,
    Heun,
    Karras,
    Langevin,
    LogMobius,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseDiffusion,
    RungeKutta,
    Sampler,
    UniformLogSNR,
    UniformTime,
)
from scoresde.scores import ScoreModel
from scoresde.scores.gaussian_mixture import GaussianMixture
from scoresde.scores.predictions import DATA, FLOW, NOISE, SCORE, VELOCITY, Prediction, edm
from scoresde.sdes import (
    DDPM,
    EDMSDE,
    NCSN,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    GaussianSDE,
    RectifiedFlow,
    SubVPSDE,
)
from scoresde.solvers import Adams, SciPy, Solver, TorchDiffEq
from scoresde.testing.examples import DoubleWell, OrnsteinUhlenbeck
from scoresde.traces import (
    ExactTrace,
    Gaussian,
    Hutchinson,
    HutchPlusPlus,
    Orthogonal,
    ProbeDistribution,
    Rademacher,
    Sphere,
    Trace,
    XTrace,
)

# --- numbers


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    """Draw a number in [low, high]."""
    return st.floats(low, high, allow_nan=False)


def logs(low: float, high: float) -> st.SearchStrategy[float]:
    """Draw a number of few digits in [low, high], evenly on the logarithmic scale."""
    exponents = floats(math.log(low), math.log(high))
    return exponents.map(lambda v: min(max(float(f"{math.exp(v):.3g}"), low), high))


def decimals(low: float, high: float) -> st.SearchStrategy[float]:
    """Draw a number of two decimals in [low, high]; the bounds have at most two decimals."""
    return st.integers(round(100 * low), round(100 * high)).map(lambda n: n / 100)


def seeds(subject: object = None) -> st.SearchStrategy[int]:
    """Draw the seed of a ``torch.Generator``."""
    return st.integers(0, 2**31 - 1)


def event_shapes(subject: object = None) -> st.SearchStrategy[tuple[int, ...]]:
    """Draw the shape of one sample: a number, a vector, an image, a video."""
    return st.sampled_from([(), (1,), (5,), (2, 3), (1, 8, 8), (3, 4, 4, 4)])


def dtypes(subject: object = None) -> st.SearchStrategy[torch.dtype]:
    """Draw the floating-point type of a state."""
    return st.sampled_from([torch.float64, torch.float32])


def devices(subject: object = None) -> st.SearchStrategy[str]:
    """Draw a device of this machine."""
    return st.sampled_from(["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])


# --- SDEs and their times


def tables(low: float, high: float, longest: int = 12) -> st.SearchStrategy[torch.Tensor]:
    """Draw a float64 table of different numbers in [low, high]."""
    entries = st.lists(logs(low, high), min_size=2, max_size=longest, unique=True)
    return entries.map(lambda values: torch.tensor(values, dtype=torch.float64))


def _separated(sigmas: torch.Tensor) -> torch.Tensor:
    """Return increasing noise levels that differ by at least 1 %."""
    levels = sigmas.sort().values
    return levels * 1.01 ** torch.arange(len(levels), dtype=torch.float64)


_ENDS = floats(0.5, 3.0)
_RATES = st.tuples(floats(0.0, 5.0), floats(0.1, 30.0)).map(lambda r: (r[0], r[0] + r[1]))
_LEVELS = st.tuples(logs(1e-3, 0.5), logs(2.0, 1e3)).map(lambda r: (r[0], r[0] * r[1]))

GAUSSIAN: dict[str, st.SearchStrategy[GaussianSDE]] = {
    "VPSDE": st.builds(lambda r, T: VPSDE(r[0], r[1], T=T), _RATES, _ENDS),
    "SubVPSDE": st.builds(lambda r, T: SubVPSDE(r[0], r[1], T=T), _RATES, _ENDS),
    "VESDE": st.builds(lambda r, T: VESDE(r[0], r[1], T=T), _LEVELS, _ENDS),
    "CosineSDE": st.builds(CosineSDE, s=floats(0.0, 0.1), T=floats(0.5, 0.999)),
    "EDMSDE": st.builds(lambda r: EDMSDE(*r), _LEVELS),
    "RectifiedFlow": st.builds(RectifiedFlow, T=floats(0.5, 0.9999)),
    "DDPM": st.builds(DDPM, tables(1e-4, 0.9), T=_ENDS),
    "NCSN": st.builds(NCSN, tables(1e-3, 1e2).map(_separated), T=_ENDS),
}
"""One strategy for each Gaussian SDE of the library, with valid parameters."""


GENERAL: dict[str, st.SearchStrategy[SDE]] = {
    "OrnsteinUhlenbeck": st.builds(
        OrnsteinUhlenbeck, logs(0.1, 10.0), floats(-3.0, 3.0), logs(0.1, 10.0), _ENDS
    ),
    "DoubleWell": st.builds(DoubleWell, logs(0.3, 3.0), _ENDS),
}
"""One strategy for each SDE of :mod:`scoresde.testing.examples`; they are not Gaussian SDEs."""


def sdes(*names: str) -> st.SearchStrategy[GaussianSDE]:
    """Draw a Gaussian SDE and its parameters.

    Args:
        *names: the classes, such as ``"VPSDE"``; all of :data:`GAUSSIAN` if none is given.

    Returns:
        A strategy.
    """
    return st.one_of(*(GAUSSIAN[name] for name in names or GAUSSIAN))


def general_sdes() -> st.SearchStrategy[SDE]:
    """Draw an SDE of which only drift and diffusion are known."""
    return st.one_of(*GENERAL.values())


@st.composite
def times(draw: st.DrawFn, sde: SDE, closed: bool = False) -> float:
    """Draw a time of an SDE in [t_min, T], evenly on the logarithmic scale.

    Args:
        draw: passed by Hypothesis.
        sde: the SDE.
        closed: whether 0, t_min and T themselves are drawn often.

    Returns:
        The time.
    """
    low = max(sde.t_min, 1e-5 * sde.T)
    inside = logs(low / sde.T, 1.0).map(lambda part: min(max(part * sde.T, low), sde.T))
    ends = st.sampled_from([sde.T, sde.t_min, 0.0])
    return draw(st.one_of(inside, ends) if closed else inside)


def closed_times(sde: SDE) -> st.SearchStrategy[float]:
    """Draw a time in [0, T], often one of 0, t_min and T."""
    return times(sde, closed=True)


def ascending(count: int) -> Callable[[SDE], st.SearchStrategy[list[float]]]:
    """Return a function from an SDE to the strategy of ``count`` ascending times, none close."""

    @st.composite
    def draw_times(draw: st.DrawFn, sde: SDE) -> list[float]:
        first = draw(logs(1e-5, 1.0 if count == 1 else 0.5))
        gaps = draw(st.lists(floats(0.05, 1.0), min_size=count, max_size=count))
        parts = [sum(gaps[:i]) / sum(gaps) for i in range(count)]
        drawn = (float(f"{sde.T * (first + (1 - first) * part):.6g}") for part in parts)
        return [min(t, sde.T) for t in drawn]

    return draw_times


# --- scores


@st.composite
def mixtures(
    draw: st.DrawFn,
    dim: int = 2,
    sdes: st.SearchStrategy[GaussianSDE] | None = None,
    narrowest: float = 1e-3,
) -> GaussianMixture:
    """Draw a mixture of one to three Gaussians with exact scores.

    Args:
        draw: passed by Hypothesis.
        dim: number of coordinates.
        sdes: strategy of the SDE; VP if None.
        narrowest: smallest standard deviation of a component in any direction: 0.1 is benign, 1e-6
            is nearly singular.

    Returns:
        The mixture.
    """
    count, seed = draw(st.integers(1, 3)), draw(seeds())
    weights = draw(st.lists(logs(0.05, 1.0), min_size=count, max_size=count))
    means = draw(st.lists(floats(-3.0, 3.0), min_size=count * dim, max_size=count * dim))
    widths = draw(st.lists(logs(narrowest, 2.0), min_size=count * dim, max_size=count * dim))
    generator = torch.Generator().manual_seed(seed)
    bases = torch.linalg.qr(
        torch.randn((count, dim, dim), generator=generator, dtype=torch.float64)
    ).Q
    variances = torch.tensor(widths, dtype=torch.float64).reshape(count, 1, dim) ** 2
    covariances = (bases * variances) @ bases.mT
    return GaussianMixture(
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(means, dtype=torch.float64).reshape(count, dim),
        0.5 * (covariances + covariances.mT),
        draw(st.builds(VPSDE) if sdes is None else sdes),
    )


@contextmanager
def _unchanged_random_state() -> Iterator[None]:
    """Restore the state of Python's generator, from which type checkers such as beartype draw."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@st.composite
def networks(draw: st.DrawFn, event_shape: tuple[int, ...] = (2,)) -> MLP:
    """Draw a small network with nonzero weights."""
    width, depth, seed = draw(st.sampled_from([4, 8])), draw(st.integers(1, 2)), draw(seeds())
    with _unchanged_random_state(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MLP(event_shape, width=width, depth=depth)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return network


def predictions() -> st.SearchStrategy[Prediction]:
    """Draw what a network predicts."""
    return st.sampled_from([NOISE, DATA, SCORE, VELOCITY, FLOW, edm(0.5)])


@st.composite
def models(draw: st.DrawFn, event_shape: tuple[int, ...] = (2,)) -> ScoreModel:
    """Draw a score with a small network, any Gaussian SDE and any prediction."""
    network, sde, prediction = draw(networks(event_shape)), draw(sdes()), draw(predictions())
    with _unchanged_random_state():
        return ScoreModel(network, sde, prediction)


# --- solvers, traces, likelihoods


def tolerances(subject: object = None) -> st.SearchStrategy[float]:
    """Draw a tolerance."""
    return logs(1e-6, 1e-2)


def solvers() -> st.SearchStrategy[Solver]:
    """Draw a solver: the library's, torchdiffeq's or scipy's, of any method."""
    return st.one_of(
        st.builds(Adams, order=st.integers(1, 8)),
        st.builds(TorchDiffEq, st.sampled_from(["dopri5", "dopri8", "bosh3", "adaptive_heun"])),
        st.builds(
            SciPy,
            st.sampled_from(["RK45", "RK23", "DOP853", "LSODA", "BDF", "Radau"]),
            coupled=st.booleans(),
        ),
    )


def probe_distributions() -> st.SearchStrategy[ProbeDistribution]:
    """Draw a distribution of probes that is defined for any number of them."""
    return st.sampled_from([Rademacher(), Gaussian(), Sphere()])


def traces() -> st.SearchStrategy[Trace]:
    """Draw a divergence estimator: exact, or with up to five probes of any distribution."""
    return st.one_of(
        st.builds(ExactTrace, chunk=st.sampled_from([64, 1, 3])),
        st.builds(
            Hutchinson, st.integers(1, 5), st.one_of(probe_distributions(), st.just(Orthogonal()))
        ),
        st.builds(HutchPlusPlus, budget=st.integers(3, 15)),
        st.builds(XTrace, budget=st.integers(2, 15)),
    )


def methods() -> st.SearchStrategy[Method]:
    """Draw a likelihood method."""
    return st.one_of(
        st.just(FlowIntegral()),
        st.just(PathIntegral()),
        st.builds(VariationalBound, samples=st.sampled_from([128, 256])),
        st.builds(ItoEstimate, steps=st.sampled_from([128, 256]), samples=st.sampled_from([8, 16])),
    )


# --- samplers


def steps(subject: object = None) -> st.SearchStrategy[int]:
    """Draw a number of steps, among them very few and quite many."""
    return st.sampled_from([1, 2, 3, 5, 20, 100])


def grids() -> st.SearchStrategy[Grid]:
    """Draw a grid of times."""
    return st.one_of(
        st.builds(UniformTime, power=decimals(1.0, 3.0)),
        st.just(UniformLogSNR()),
        st.builds(Karras, rho=decimals(3.0, 9.0)),
        st.builds(Angle, pivot=logs(0.2, 5.0)),
        st.builds(LogMobius, pivot=logs(0.2, 5.0)),
    )


def coordinates() -> st.SearchStrategy[Coordinates]:
    """Draw coordinates of the probability flow."""
    return st.sampled_from([Windowed(), Standardized(), VarianceExploding(), LogSNR(), Rectified()])


def predictors() -> st.SearchStrategy[Sampler]:
    """Draw a sampler that makes one stochastic step at a time."""
    return st.one_of(
        st.builds(EulerMaruyama, eta=decimals(0.3, 1.2)),
        st.just(ReverseDiffusion()),
        st.builds(Ancestral, variance=st.sampled_from([0.0, 0.5, 1.0])),
        st.builds(Exponential, order=st.just(1), eta=st.builds(DDIMNoise, decimals(0.1, 1.0))),
    )


def flow_samplers() -> st.SearchStrategy[Sampler]:
    """Draw a sampler that solves the probability flow."""
    tableaus = st.sampled_from([HEUN, MIDPOINT, RALSTON, HEUN3, KUTTA3, RK4])
    orders, correctors = st.integers(1, 3), st.integers(0, 4)
    return st.one_of(
        st.just(EulerMaruyama(eta=0.0)),
        st.builds(Exponential, order=orders, corrector=correctors),
        st.builds(DEIS, order=orders, corrector=correctors),
        st.builds(AdamsBashforth, orders, correctors, coordinates()),
        st.builds(RungeKutta, tableaus, coordinates()),
        st.just(Heun()),
        st.builds(ProbabilityFlow, tolerance=logs(1e-5, 1e-3)),
    )


def samplers() -> st.SearchStrategy[Sampler]:
    """Draw a sampler: of the flow, of the reverse SDE, with a corrector, or a corrector alone."""
    correctors = st.sampled_from([Langevin(), AnnealedLangevin(), AnnealedLangevin(snr=0.1)])
    return st.one_of(
        flow_samplers(),
        predictors(),
        st.builds(Exponential, order=st.integers(1, 3), eta=decimals(0.3, 1.2)),
        st.builds(Heun, eta=decimals(0.3, 1.2)),
        st.builds(Churn, gamma=decimals(0.0, 0.4)),
        st.builds(PredictorCorrector, predictors(), correctors, corrections=st.integers(1, 2)),
        correctors,
    )
