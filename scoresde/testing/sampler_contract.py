"""What every sampler owes as code: grids, generators, rows on their own, any shape, any N."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde._core.random import normal_like
from scoresde._core.shapes import Time
from scoresde.samplers import sample, iterate
from scoresde.scores.gaussian_mixture import GaussianMixture
from scoresde.sdes import VESDE, VPSDE, GaussianSDE, SubVPSDE
from scoresde.testing.properties import PropertySuite, close, holds
from scoresde.testing.strategies import dtypes, event_shapes, sdes, seeds
from scoresde.testing.strategies import steps as number_of_steps

SAMPLERS = PropertySuite("sampler")
"""What every sampler owes; :mod:`scoresde.testing.samplers` adds the mathematics."""


def diffusions(sampler: object = None) -> st.SearchStrategy[GaussianSDE]:
    """Draw one of the three diffusions that samplers are tried on."""
    return st.one_of(st.builds(VPSDE), st.builds(SubVPSDE), st.builds(VESDE))


_MOST = 50_000
"""Evaluations of a score after which a sampler counts as one that never ends."""


class _Watched(GaussianMixture):
    """A mixture that is not evaluated for ever."""

    evaluations = 0

    def output(self, x: Tensor, t: Time) -> Tensor:
        """Return the score, and count."""
        self.evaluations += 1
        if self.evaluations > _MOST:
            raise AssertionError(f"{_MOST} evaluations of the score, and there is no end in sight")
        return super().output(x, t)


WEIGHTS = torch.tensor([0.6, 0.4], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, -1.0], [1.0, 0.8]], dtype=torch.float64)
VARIANCE = torch.tensor(0.09, dtype=torch.float64)
"""Two round modes in the plane."""


def one_gaussian(sde: GaussianSDE, event_shape: tuple[int, ...], width: float = 0.3) -> Any:
    """Return the score of data N(½, width²) in each coordinate."""
    d = math.prod(event_shape)
    eye = width**2 * torch.eye(d, dtype=torch.float64)
    return _Watched(torch.ones(1), torch.full((1, *event_shape), 0.5), eye[None], sde)


def two_modes(sde: GaussianSDE) -> Any:
    """Return the score of a mixture of two round modes in the plane."""
    eye = torch.eye(2, dtype=torch.float64)
    return _Watched(WEIGHTS, MEANS, (VARIANCE * eye).expand(2, 2, 2), sde)


def logsnr_times(sampler: Any, sde: GaussianSDE, steps: int, ends: tuple[float, float]) -> Tensor:
    """Return times equidistant in λ; a sampler that steps by itself needs few."""
    count = min(steps, 8) if sampler.default_steps == 1 else steps
    return sde.time_at(torch.linspace(*ends, count + 1, dtype=torch.float64))


def source(seed: int) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def _times(sampler: Any, sde: GaussianSDE, steps: int) -> Tensor:
    count = max(1, steps // 20) if sampler.default_steps == 1 else steps
    return torch.linspace(sde.T, sde.t_min, count + 1, dtype=torch.float64)


@SAMPLERS.property(
    "grid",
    "N steps make N + 1 float64 times on the CPU, strictly falling in [0, T]",
    "spacings rounded to whole indices; N instead of N + 1 times; time that rises",
    examples=12,
    sde=lambda sampler: sdes(),
    steps=number_of_steps,
)
def grid(sampler: Any, sde: GaussianSDE, steps: int) -> None:
    """The default grid is one; a sampler may refuse a diffusion it has no grid for."""
    try:
        times = sampler.times(sde, steps)
    except (TypeError, ValueError):
        return
    found = tuple(times.shape), times.dtype, times.device.type
    wanted = (steps + 1,), torch.float64, "cpu"
    holds(found == wanted, f"the grid is {found}, expected {wanted}")
    holds((times.diff() < 0).all(), f"the times are {times.tolist()}, expected falling ones")
    inside = float(times[-1]) >= 0 and float(times[0]) <= sde.T
    holds(inside, f"the times run from {times[0]:g} to {times[-1]:g}, expected in [0, {sde.T:g}]")


@SAMPLERS.property(
    "shapes",
    "x (n, *event) of any event shape, in the dtype of the start, finite for N = 1 as for N = 100",
    "[:, None, None, None]; 0/0 in the first or last step of a multistep method; a leak of float64",
    examples=8,
    sde=diffusions,
    event_shape=event_shapes,
    dtype=dtypes,
    steps=number_of_steps,
    seed=seeds,
)
def shapes(
    sampler: Any,
    sde: GaussianSDE,
    event_shape: tuple[int, ...],
    dtype: torch.dtype,
    steps: int,
    seed: int,
) -> None:
    """Samples are shaped like the start, which is left alone."""
    score = one_gaussian(sde, event_shape)
    start = score.sample(3, sde.T, source(seed), dtype)
    kept, times = start.clone(), _times(sampler, sde, steps)
    x = sample(score, None, sampler, times=times, start=start, generator=source(seed))
    found, wanted = (tuple(x.shape), x.dtype), (tuple(start.shape), dtype)
    holds(found == wanted, f"the samples are {found}, expected {wanted}")
    holds(torch.isfinite(x).all(), "the samples are not finite")
    close("the start, after the run,", start, kept)


@SAMPLERS.property(
    "few steps",
    "N = 1, 2 and 3 steps on the sampler's own grid end in finite samples",
    "a history that is taken for granted; an index past the end of the times; 0/0 in a last step",
    examples=6,
    sde=diffusions,
    steps=lambda sampler: st.sampled_from([1, 2, 3]),
    seed=seeds,
)
def few_steps(sampler: Any, sde: GaussianSDE, steps: int, seed: int) -> None:
    """A run of hardly any steps, from the prior."""
    score = two_modes(sde)
    x = sample(score, (3, 2), sampler, steps=steps, generator=source(seed))
    holds(torch.isfinite(x).all(), f"the samples of {steps} steps are not finite")


@SAMPLERS.property(
    "closed ends",
    "runs from T to t = 0 itself end in finite states, and a run is not moved by where it is cut",
    "a division by σ(0) = 0 or by the length of a step; log σ at 0",
    examples=4,
    sde=diffusions,
    steps=number_of_steps,
    seed=seeds,
)
def closed_ends(sampler: Any, sde: GaussianSDE, steps: int, seed: int) -> None:
    """The whole interval [0, T] can be walked."""
    score, count = one_gaussian(sde, (2,)), min(steps, 20)
    times = torch.linspace(sde.T, 0.0, count + 1, dtype=torch.float64)
    start = score.sample(3, sde.T, source(seed), torch.float64)
    x = sample(score, None, sampler, times=times, start=start, generator=source(seed))
    holds(torch.isfinite(x).all(), "the samples are not finite")


@SAMPLERS.property(
    "generator",
    "one seed, one result; another seed, another; the global generators stand still",
    "torch.randn without generator=; torch.manual_seed inside; noise drawn where none is declared",
    examples=3,
    sde=diffusions,
    seed=seeds,
)
def generator(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """All randomness comes from the generator."""
    score, times = two_modes(sde), _times(sampler, sde, 5)
    start = score.sample(4, sde.T, source(seed), torch.float64)

    def run(seed: int) -> Tensor:
        return sample(score, None, sampler, times=times, start=start, generator=source(seed))

    state = torch.get_rng_state()
    first = run(seed)
    holds(torch.equal(torch.get_rng_state(), state), "the global generator has moved")
    close("the samples of the same seed", run(seed), first)
    same = torch.equal(run(seed + 1), first)
    if sampler.deterministic:
        holds(same, "another seed gives other samples, expected the same: it is deterministic")
    else:
        holds(
            not same,
            "another seed gives the same samples, expected others: it is not declared "
            "deterministic",
        )


@SAMPLERS.property(
    "chunks",
    "sample(…, batch_size=k) gives the samples of the whole batch",
    "a norm or mean over the batch; noise drawn for each chunk; a state of the wrong rows",
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def chunks(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """How many rows the network sees at once does not matter."""
    score, times = two_modes(sde), _times(sampler, sde, 5)
    start = score.sample(7, sde.T, source(seed), torch.float64)
    whole, parts = (
        sample(score, None, sampler, times=times, start=start, generator=source(seed), batch_size=k)
        for k in (None, 3)
    )
    close("the samples in chunks", parts, whole, rtol=1e-6, atol=1e-6)


@SAMPLERS.property(
    "rows",
    "a sample, given its noise, is the same whatever its batch-mates are",
    "a step size, norm or error estimate that is averaged over the batch",
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def rows(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """Each row is run again alone, with the noise it had in the batch."""
    score, times = two_modes(sde), _times(sampler, sde, 8)
    start = score.sample(3, sde.T, source(seed), torch.float64)
    start[-1] *= 3  # an odd one that must not disturb the others
    drawn, noise = [], source(seed + 1)

    def record(x: Tensor) -> Tensor:
        drawn.append(normal_like(x, noise))
        return drawn[-1]

    together = _last(iterate(score, start, times, sampler, record))
    for i in range(3):
        alone = _last(iterate(score, start[i : i + 1], times, sampler, _replay(drawn, i)))
        close(f"sample {i} alone", alone, together[i : i + 1], rtol=1e-6, atol=1e-8)


def _last(run: Iterable[tuple[Tensor, Any]]) -> Tensor:
    *_, (last, _) = run
    return last


def _replay(drawn: list[Tensor], row: int) -> Callable[[Tensor], Tensor]:
    """Return a source that gives the recorded noise of one row."""
    recorded = iter(drawn)

    def noise(x: Tensor) -> Tensor:
        return next(recorded)[row : row + 1]

    return noise
