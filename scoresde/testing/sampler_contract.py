"""The properties of samplers as code: grids, generators, batch independence, any shape, any N."""

# ruff: noqa: ARG001 - tests, fields and strategies take the arguments of their family

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from scoresde._core.random import normal, normal_like
from scoresde._core.shapes import Time
from scoresde.samplers import iterate, sample
from scoresde.scores.gaussian_mixture import GaussianMixture
from scoresde.sdes import DDPM, NCSN, VESDE, VPSDE, GaussianSDE, SubVPSDE
from scoresde.testing.properties import PropertySuite, close, finite, holds
from scoresde.testing.strategies import dtypes, event_shapes, sdes, seeds
from scoresde.testing.strategies import steps as number_of_steps

SAMPLERS = PropertySuite("sampler")
"""The properties of samplers; :mod:`scoresde.testing.samplers` adds the mathematical ones."""


def diffusions(sampler: object = None) -> st.SearchStrategy[GaussianSDE]:
    """Draw one of the three SDEs that samplers are tested with."""
    return st.one_of(st.builds(VPSDE), st.builds(SubVPSDE), st.builds(VESDE))


_MOST = 50_000
"""Evaluations of a score after which a sampler is taken for one that does not terminate."""


class _CountedMixture(GaussianMixture):
    """A mixture with a limit on its evaluations."""

    evaluations = 0

    def output(self, x: Tensor, t: Time) -> Tensor:
        """Return the score, and count the evaluation."""
        self.evaluations += 1
        if self.evaluations > _MOST:
            raise AssertionError(f"{_MOST} evaluations of the score without reaching the end")
        return super().output(x, t)


WEIGHTS = torch.tensor([0.6, 0.4], dtype=torch.float64)
MEANS = torch.tensor([[-1.0, -1.0], [1.0, 0.8]], dtype=torch.float64)
VARIANCE = torch.tensor(0.09, dtype=torch.float64)
"""Two isotropic modes in the plane."""


def one_gaussian(sde: GaussianSDE, event_shape: tuple[int, ...], width: float = 0.3) -> Any:
    """Return the score of data N(½, width²) in each coordinate."""
    d = math.prod(event_shape)
    eye = width**2 * torch.eye(d, dtype=torch.float64)
    return _CountedMixture(torch.ones(1), torch.full((1, *event_shape), 0.5), eye[None], sde)


def two_modes(sde: GaussianSDE) -> Any:
    """Return the score of a mixture of two isotropic modes in the plane."""
    eye = torch.eye(2, dtype=torch.float64)
    return _CountedMixture(WEIGHTS, MEANS, (VARIANCE * eye).expand(2, 2, 2), sde)


def logsnr_times(sampler: Any, sde: GaussianSDE, steps: int, ends: tuple[float, float]) -> Tensor:
    """Return times equidistant in λ; few for a sampler that chooses its own steps."""
    count = min(steps, 8) if sampler.default_steps == 1 else steps
    return sde.time_at(torch.linspace(*ends, count + 1, dtype=torch.float64))


def source(seed: int) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def _times(sampler: Any, sde: GaussianSDE, steps: int) -> Tensor:
    count = max(1, steps // 20) if sampler.default_steps == 1 else steps
    return torch.linspace(sde.T, sde.t_min, count + 1, dtype=torch.float64)


_WITH_GRIDS = (VPSDE, SubVPSDE, VESDE, lambda: DDPM.linear(N=50), lambda: NCSN.geometric(N=50))
"""SDEs of which a sampler must have a grid for at least one."""


@SAMPLERS.property(
    "grid",
    "N steps make N + 1 float64 times on the CPU, strictly decreasing in [0, T]",
    "spacings rounded to whole indices; N instead of N + 1 times; time that rises; times() that "
    "raises for every SDE",
    examples=12,
    sde=lambda sampler: sdes(),
    steps=number_of_steps,
)
def grid(sampler: Any, sde: GaussianSDE, steps: int) -> None:
    """The default grid; a sampler may refuse an SDE by a TypeError or ValueError, but not all."""
    try:
        times = sampler.times(sde, steps)
    except (TypeError, ValueError) as error:
        accepted = any(_has_grid(sampler, make()) for make in _WITH_GRIDS)
        holds(
            accepted,
            f"times() raises {type(error).__name__}: {error}; it does so for VP, sub-VP, VE, DDPM "
            "and NCSN too, expected a grid for at least one of them",
        )
        return
    found = tuple(times.shape), times.dtype, times.device.type
    wanted = (steps + 1,), torch.float64, "cpu"
    holds(found == wanted, f"the grid is {found}, expected {wanted}")
    holds((times.diff() < 0).all(), f"the times are {times.tolist()}, expected decreasing ones")
    inside = float(times[-1]) >= 0 and float(times[0]) <= sde.T
    holds(inside, f"the times run from {times[0]:g} to {times[-1]:g}, expected in [0, {sde.T:g}]")


def _has_grid(sampler: Any, sde: GaussianSDE) -> bool:
    try:
        sampler.times(sde, 5)
    except (TypeError, ValueError):
        return False
    return True


@SAMPLERS.property(
    "shapes",
    "x (n, *event) of any event shape, in the dtype of the start, finite for N = 1 as for N = 100",
    "[:, None, None, None]; 0/0 in the first or last step of a multistep method; float64 results "
    "of float32 steps",
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
    """Samples are shaped like the start, which is not modified."""
    score = one_gaussian(sde, event_shape)
    start = score.sample(3, sde.T, source(seed), dtype)
    before, times = start.clone(), _times(sampler, sde, steps)
    x = sample(score, None, sampler, times=times, start=start, generator=source(seed))
    found, wanted = (tuple(x.shape), x.dtype), (tuple(start.shape), dtype)
    holds(found == wanted, f"the samples are {found}, expected {wanted}")
    finite("the sample", x)
    close("the start, after the run,", start, before)


@SAMPLERS.property(
    "few steps",
    "N = 1, 2 and 3 steps on the sampler's own grid end in finite samples",
    "a history that is assumed to exist; an index past the end of the times; 0/0 in a last step",
    examples=6,
    sde=diffusions,
    steps=lambda sampler: st.sampled_from([1, 2, 3]),
    seed=seeds,
)
def few_steps(sampler: Any, sde: GaussianSDE, steps: int, seed: int) -> None:
    """Runs of one to three steps, from the prior."""
    score = two_modes(sde)
    x = sample(score, (3, 2), sampler, steps=steps, generator=source(seed))
    finite(f"the sample of {steps} steps", x)


@SAMPLERS.property(
    "endpoints",
    "runs from T to t_min and to t = 0 itself, where σ may be 0, end in finite states; a step from "
    "t_min to 0 changes the state by no more than 30 σ + 5 |x − α x̂| at t_min",
    "a division by σ(0) = 0 or by the length of a step; log σ at 0; noise in the last step",
    examples=4,
    sde=diffusions,
    steps=number_of_steps,
    dtype=dtypes,
    seed=seeds,
)
def endpoints(sampler: Any, sde: GaussianSDE, steps: int, dtype: torch.dtype, seed: int) -> None:
    """Runs over all of [0, T]."""
    score, count = one_gaussian(sde, (2,)), min(steps, 20)
    start = score.sample(3, sde.T, source(seed), dtype)

    def run(times: Tensor, denoise: bool = False) -> Tensor:
        return sample(
            score, None, sampler, times=times, start=start, generator=source(seed), denoise=denoise
        )

    to_zero = torch.linspace(sde.T, 0.0, count + 1, dtype=torch.float64)
    finite("the sample at t = 0", run(to_zero))
    finite("the denoised sample at t = 0", run(to_zero, denoise=True))
    to_t_min = torch.linspace(sde.T, sde.t_min, count + 1, dtype=torch.float64)
    finite("the sample at t = t_min", run(to_t_min))
    if not sampler.corrects and sde.t_min > 0:  # in steps so small that multistep methods are exact
        first, last = sde.half_logsnr(
            torch.tensor([sde.T, sde.t_min], dtype=torch.float64)
        ).tolist()
        times = logsnr_times(sampler, sde, 16, (first, last))
        early = run(times)
        late = run(torch.cat([times, torch.zeros(1, dtype=torch.float64)]))
        noise = early - sde.alpha(sde.t_min) * score.denoised(early, sde.t_min)
        allowed = 30 * float(sde.sigma(sde.t_min)) + 5 * float(noise.abs().max()) + 1e-3
        change = float((late - early).abs().max())
        holds(
            change <= allowed,
            f"the step from t_min to 0 changes the state by {change:.3g}, tolerated is "
            f"{allowed:.3g}",
        )


@SAMPLERS.property(
    "double precision",
    "small changes of a float64 start, and of the times of a deterministic run, change the sample "
    "in proportion",
    "states or coefficients computed in float32; a time rounded to an index or to float32",
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def double_precision(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """A change of twice the size has twice the effect; in float32 rounding errors are larger.

    The state is changed by 1e-9 (to 5 %), the times by 3e-6 (to 0.1 %), which is a hundred times
    the rounding error of float32; the second derivative contributes 1e-5 of the effect. Samplers
    that choose their own steps are not smooth in the times.
    """
    score = two_modes(sde)
    times = logsnr_times(sampler, sde, 10, (-2.0, 1.5))
    start = score.sample(4, float(times[0]), source(seed), torch.float64)
    direction = normal(start.shape, generator=source(seed + 1), dtype=torch.float64)
    direction = float(sde.sigma(times[0])) * direction

    def run(of_state: float, of_times: float) -> Tensor:
        return sample(
            score,
            None,
            sampler,
            times=times * (1 - of_times),
            start=start + of_state * direction,
            generator=source(seed + 2),
            denoise=False,
        )

    base = run(0.0, 0.0)
    smooth = sampler.deterministic and sampler.default_steps != 1
    cases = [("start", 1e-9, 0.0, 0.05)] + ([("times", 0.0, 3e-6, 1e-3)] if smooth else [])
    for what, of_state, of_times, tolerance in cases:
        once = run(of_state, of_times) - base
        twice = run(2 * of_state, 2 * of_times) - base
        effect = float(twice.abs().max())
        if sampler.deterministic:
            holds(effect > 1e-12, f"a small change of the {what} has no effect")
        allowed = tolerance * effect + 1e-12
        close(f"the effect of twice the change of the {what}", twice, 2 * once, atol=allowed)


@SAMPLERS.property(
    "generator",
    "equal seeds give equal samples, other seeds others; the global generator is not used",
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
    holds(torch.equal(torch.get_rng_state(), state), "the global generator has advanced")
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
    """The number of samples in one evaluation of the network does not matter."""
    score, times = two_modes(sde), _times(sampler, sde, 5)
    start = score.sample(7, sde.T, source(seed), torch.float64)
    together, parts = (
        sample(score, None, sampler, times=times, start=start, generator=source(seed), batch_size=k)
        for k in (None, 3)
    )
    close("the samples in chunks", parts, together, rtol=1e-6, atol=1e-6)


@SAMPLERS.property(
    "batch independence",
    "a sample, given its noise, does not depend on the others of its batch",
    "a step size, norm or error estimate that is averaged over the batch",
    examples=2,
    sde=diffusions,
    seed=seeds,
)
def batch_independence(sampler: Any, sde: GaussianSDE, seed: int) -> None:
    """Each sample is run again alone, with the noise that it had in the batch."""
    score, times = two_modes(sde), _times(sampler, sde, 8)
    start = score.sample(3, sde.T, source(seed), torch.float64)
    start[-1] *= 3  # an outlier
    drawn, noise = [], source(seed + 1)

    def record(x: Tensor) -> Tensor:
        drawn.append(normal_like(x, noise))
        return drawn[-1]

    together = _last(iterate(score, start, times, sampler, record))
    for i in range(3):
        alone = _last(iterate(score, start[i : i + 1], times, sampler, _recorded(drawn, i)))
        close(f"sample {i} alone", alone, together[i : i + 1], rtol=1e-6, atol=1e-8)


def _last(run: Iterable[tuple[Tensor, Any]]) -> Tensor:
    *_, (last, _) = run
    return last


def _recorded(drawn: list[Tensor], row: int) -> Callable[[Tensor], Tensor]:
    """Return a function that returns the recorded noise of one row."""
    recorded = iter(drawn)

    def noise(x: Tensor) -> Tensor:
        return next(recorded)[row : row + 1]

    return noise
