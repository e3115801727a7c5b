"""Samplers of other libraries, fed the exact denoiser in their own conventions.

Each is run as its library runs it, on its own schedule. If a library rounds the time that it passes
to the network, the denoiser is evaluated at the time of the step instead, to its advantage.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import RectifiedSchedule
from azula.sample import vABSampler, zEABSampler
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
)
from flow_matching.solver import ODESolver
from torch import Tensor

from sampling.methods import Counted, Method, Outcome, karras, multistep_2m
from sampling.problems import Problem


@dataclass(frozen=True)
class Diffusers(Method):
    """A scheduler of diffusers on the linear betas of DDPM, 1e-4 to 0.02 in 1000."""

    name: str
    make: Callable[[], Any]
    random: bool = False

    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome:
        """Follow the scheduler's own timesteps."""
        denoised, scheduler = Counted(problem), self.make()
        generator = torch.Generator().manual_seed(5)
        scheduler.set_timesteps(evaluations)
        ratios = _ratios(scheduler)
        x = ratios[0] * noise / math.hypot(1, ratios[0])
        extra = {"generator": generator} if self.random else {}
        for t, ratio in zip(scheduler.timesteps, ratios, strict=False):
            y = x * math.hypot(1, ratio)
            predicted = (y - denoised(y, ratio)) / ratio
            x = scheduler.step(predicted, t, x, **extra).prev_sample
        return Outcome(ratios[0], ratios[-1], x * math.hypot(1, ratios[-1]), denoised.count)


@dataclass(frozen=True)
class DiffusersEDM(Method):
    """EDMDPMSolverMultistepScheduler of diffusers, σ from 80 to 0.002."""

    name: str
    order: int
    schedule: str = "karras"

    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome:
        """Follow the scheduler, undoing its preconditioning."""
        denoised = Counted(problem)
        scheduler = EDMDPMSolverMultistepScheduler(
            solver_order=self.order, sigma_schedule=self.schedule
        )
        scheduler.set_timesteps(evaluations)
        ratios = scheduler.sigmas.double()
        y, own = ratios[0] * noise, scheduler.config.sigma_data
        for t, ratio in zip(scheduler.timesteps, ratios, strict=False):
            skip = own**2 / (ratio**2 + own**2)
            out = ratio * own / (ratio**2 + own**2).sqrt()
            output = (denoised(y, ratio) - skip * y) / out
            y = scheduler.step(output, t, y).prev_sample
        return Outcome(float(ratios[0]), float(ratios[-1]), y, denoised.count)


@dataclass(frozen=True)
class KDiffusion(Method):
    """DPM-Solver++(2M) as k-diffusion runs it: Karras' grid from 80 to 0.002, then to 0."""

    name: str = "k-diffusion dpmpp_2m"

    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome | None:
        """Make one step per evaluation, the last one to 0."""
        if evaluations < 2:
            return None
        denoised = Counted(problem)
        ratios = [*karras(80.0, 0.002, evaluations - 1), 0.0]
        y = multistep_2m(denoised, ratios[0] * noise, ratios)
        return Outcome(ratios[0], 0.0, y, denoised.count)


@dataclass(frozen=True)
class KDiffusionHeun(Method):
    """Algorithm 1 of EDM, literally, as in k-diffusion's sample_heun: σ from 80 to 0.002 to 0.

    References:
        Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    name: str = "EDM / k-diffusion Heun"

    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome | None:
        """Make a step per two evaluations; the last one to 0 takes one."""
        steps = (evaluations + 1) // 2
        if steps < 2:
            return None
        denoised = Counted(problem)
        ratios = [*karras(80.0, 0.002, steps - 1), 0.0]
        y = ratios[0] * noise
        for here, there in pairwise(ratios):
            slope = (y - denoised(y, here)) / here
            later = y + (there - here) * slope
            if there > 0:
                slope = 0.5 * (slope + (later - denoised(later, there)) / there)
                later = y + (there - here) * slope
            y = later
        return Outcome(ratios[0], 0.0, y, denoised.count)


class _AzulaDenoiser(Denoiser):
    """The exact denoiser as azula has it."""

    def __init__(self, denoised: Counted) -> None:
        super().__init__()
        self.denoised = denoised
        self.schedule = RectifiedSchedule()

    def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> DiracPosterior:
        alpha, sigma = self.schedule(t.double())
        return DiracPosterior(mean=self.denoised(x_t / alpha, sigma / alpha))


@dataclass(frozen=True)
class Azula(Method):
    """A multistep sampler of azula on its rectified schedule, ρ from 1000 to 0.001."""

    name: str
    sampler: Callable[..., Any]
    order: int

    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome:
        """Make one step per evaluation."""
        denoised = Counted(problem)
        sampler = self.sampler(
            _AzulaDenoiser(denoised), order=self.order, steps=evaluations, silent=True,
            dtype=torch.float64,
        )  # fmt: skip
        y = sampler(noise.clone())  # σ_T = 1
        return Outcome(1000.0, 0.001, y, denoised.count)  # α = 1 at t = 0


@dataclass(frozen=True)
class FlowMatching(Method):
    """A solver of flow_matching on the straight path x_t = t x_1 + (1 − t) x_0, from .001 to .999.

    Its own ends, 0 and 1, are where the velocity of an exact denoiser is not defined.
    """

    name: str
    method: str
    stages: int

    def __call__(self, problem: Problem, noise: Tensor, evaluations: int) -> Outcome | None:
        """Make equal steps."""
        steps = evaluations // self.stages
        if steps < 1:
            return None
        denoised = Counted(problem)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return (denoised(x / t, (1 - t) / t) - x) / (1 - t)

        first, last = 1e-3, 1 - 1e-3
        times = torch.linspace(first, last, steps + 1, dtype=torch.float64)
        x = ODESolver(velocity).sample(
            (1 - first) * noise, step_size=None, method=self.method, time_grid=times
        )
        return Outcome((1 - first) / first, (1 - last) / last, x / last, denoised.count)


def _ratios(scheduler: Any) -> list[float]:
    """Return the σ/α a scheduler computes with, the last one included."""
    if hasattr(scheduler, "sigmas"):
        return scheduler.sigmas.double().tolist()
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    last = float(scheduler.final_alpha_cumprod)
    return [*((1 - kept) / kept).sqrt().tolist(), math.sqrt((1 - last) / last)]


def _linear(scheduler: type, **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return scheduler(
                num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                **settings,
            )  # fmt: skip

    return make


_DPM = DPMSolverMultistepScheduler
DIFFUSERS_2M = (
    Diffusers("diffusers DPM++2M (defaults)", _linear(_DPM)),
    Diffusers("diffusers DPM++2M (Lu)", _linear(_DPM, use_lu_lambdas=True)),
    Diffusers("diffusers DPM++2M (Karras)", _linear(_DPM, use_karras_sigmas=True)),
)
PEERS: tuple[Method, ...] = (
    Diffusers(
        "diffusers DDIM (trailing)",
        _linear(DDIMScheduler, timestep_spacing="trailing", clip_sample=False),
    ),
    *DIFFUSERS_2M,
    Diffusers("diffusers DPM++3M (Lu)", _linear(_DPM, solver_order=3, use_lu_lambdas=True)),
    Diffusers(
        "diffusers UniPC2 (Karras)", _linear(UniPCMultistepScheduler, use_karras_sigmas=True)
    ),
    Diffusers("diffusers DEIS3", _linear(DEISMultistepScheduler, solver_order=3)),
    DiffusersEDM("diffusers EDM-DPM++2M", 2),
    DiffusersEDM("diffusers EDM-DPM++3M", 3),
    Diffusers(
        "diffusers SDE-DPM++2M (Lu)",
        _linear(_DPM, algorithm_type="sde-dpmsolver++", use_lu_lambdas=True),
        random=True,
    ),
    KDiffusion(),
    KDiffusionHeun(),
    Azula("azula vAB(3), rectified", vABSampler, 3),
    Azula("azula zEAB(3), rectified", zEABSampler, 3),
    FlowMatching("flow_matching midpoint", "midpoint", 2),
    FlowMatching("flow_matching heun3", "heun3", 3),
    FlowMatching("flow_matching rk4", "rk4", 4),
)
