"""Schedulers of diffusers as samplers."""

from __future__ import annotations

# a dataclass field may declare what the base class computes
# pyright: reportIncompatibleMethodOverride=false
import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde.samplers import Noise, Sampler
from scoresde.samplers.base import noise_level_at
from scoresde.scores import Score
from scoresde.scores.predictions import NOISE, edm
from scoresde.testing.adapters.functions import Named

_NEEDED = "config", "from_config", "set_timesteps", "timesteps", "step", "add_noise"

_TABLES = "sigmas", "alphas_cumprod"
"""Attributes of schedulers with their noise levels: σ/α, and α² of a variance-preserving SDE."""

_PLAIN = {
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "clip_sample": False,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
"""Settings around the steps: the network's output, grids, clipping."""


@dataclass(frozen=True, repr=False)
class SchedulerSampler(Named, Sampler):
    r"""The steps of a scheduler of diffusers, between any times.

    As in its pipelines, a step is ``x = scheduler.step(output, timestep, x).prev_sample``, with the
    state in the scale of ``add_noise``, and the output that the scheduler expects. Its noise
    levels, the attributes ``sigmas`` or ``alphas_cumprod``, are set to those of the times, in
    float64. Its grids, its clipping and its special last steps before σ = 0 are not used: the step
    alone is tested.

    Args:
        scheduler: a scheduler with ``config``, ``from_config``, ``set_timesteps``, ``timesteps``,
            ``step`` and ``add_noise``; a copy is used.
        convergence_order: the declared order, if any.
        deterministic: whether it draws no noise; else noise is passed to it as ``variance_noise``.
        options: keyword arguments of its ``step``, such as ``{"eta": 1.0}``.

    Raises:
        TypeError: if one of these is missing.
        ValueError: in a run, if the scheduler ignores the noise levels, or draws its own noise.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> from scoresde import FunctionScore, VPSDE
        >>> from scoresde.samplers import sample
        >>> ddim = SchedulerSampler(DDIMScheduler(), convergence_order=1)
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())
        >>> sample(score, (2, 3), ddim, steps=4).shape
        torch.Size([2, 3])

    References:
        von Platen et al., *Diffusers: state-of-the-art diffusion models*, 2022,
        github.com/huggingface/diffusers.
    """

    scheduler: Any
    convergence_order: float | None = None
    deterministic: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _NEEDED:
            if not hasattr(self.scheduler, name):
                raise TypeError(
                    f"scheduler: expected one of diffusers with {', '.join(_NEEDED)}, got "
                    f"{type(self.scheduler).__name__} without {name!r}; write its run as a "
                    "function for LoopSampler"
                )
        if not self.deterministic and "variance_noise" not in _arguments(self.scheduler.step):
            raise ValueError(
                f"scheduler: expected one whose step takes its noise as variance_noise, got "
                f"{type(self.scheduler).__name__}; write its step as a function for FunctionSampler"
            )

    def __repr__(self) -> str:
        """Return the call, with the settings that are not defaults of the scheduler."""
        defaults = _arguments(type(self.scheduler))
        settings = [
            f"{key}={value!r}"
            for key, value in self.scheduler.config.items()
            if key in defaults and value != defaults[key].default
        ]
        words = [f"{type(self.scheduler).__name__}({', '.join(settings)})"]
        words += [f"convergence_order={self.convergence_order}"]
        words += [f"deterministic={self.deterministic}"]
        words += [f"options={dict(self.options)!r}"] if self.options else []
        return f"{type(self).__name__}({', '.join(words)})"

    def init(self, score: Score, x: Tensor, times: Tensor) -> _SchedulerRun:
        """Return a copy of the scheduler whose first timestep has the noise level of times[0]."""
        run = _SchedulerRun(self.scheduler)
        run.set(0, noise_level_at(score.sde, times.reshape(-1)[0]).ratio)
        return run

    def step(
        self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: _SchedulerRun, noise: Noise
    ) -> tuple[Tensor, _SchedulerRun]:
        """Go from t to s, in as many calls as a step of the scheduler has."""
        scheduler, here, there = (
            state.scheduler,
            noise_level_at(score.sde, t),
            noise_level_at(score.sde, s),
        )
        scale = state.scale, state.set(state.number + 1, there.ratio)
        own = x * (scale[0] / here.alpha)
        extra: dict[str, Any] = {} if self.deterministic else {"variance_noise": noise(x)}
        before = torch.get_rng_state()
        for call in range(state.calls):
            # the second call of a Heun step evaluates the state reached by the first
            timestep, time, unit, alpha = (
                (state.timesteps[state.number], t, scale[0], here.alpha)
                if call == 0
                else (state.timesteps[state.number + 1], s, scale[1], there.alpha)
            )
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(own, timestep)  # for its records only
            output = score.predict(own * (alpha / unit), time, state.prediction)
            own = scheduler.step(output, timestep, own, **extra, **self.options).prev_sample
        if not torch.equal(torch.get_rng_state(), before):
            raise ValueError(
                f"deterministic, options: expected that {type(scheduler).__name__} draws no noise "
                "of its own, but the global generator has advanced; declare deterministic=False"
            )
        state.number, state.scale = state.number + 1, scale[1]
        return own * (there.alpha / scale[1]), state


class _SchedulerRun:
    """The state of a scheduler in a run.

    Attributes:
        scheduler: a copy of the scheduler.
        prediction: the prediction that it expects as output of the network: ε̂, or F of EDM.
        timesteps: its timesteps, each once, the noisiest first.
        calls: calls of its ``step`` for one step: two for Heun's method.
        number: index of the current timestep.
        scale: α there in the scheduler's own units, x_t = α x_0 + σ ε.
    """

    def __init__(self, scheduler: Any) -> None:
        with warnings.catch_warnings():  # deprecated NumPy calls of diffusers
            warnings.simplefilter("ignore", DeprecationWarning)
            self._prepare(scheduler)
        self.calls = 2 if len(self._index_of) > len(self.timesteps) else 1
        for name in _TABLES:
            table = getattr(self.scheduler, name, None)
            if isinstance(table, Tensor):
                setattr(self.scheduler, name, table.double())
        self.number, self.scale = 0, 1.0

    def _prepare(self, scheduler: Any) -> None:
        known = {key: value for key, value in _PLAIN.items() if key in scheduler.config}
        self.scheduler = type(scheduler).from_config(scheduler.config, **known)
        own = scheduler.config.get("sigma_data")
        self.prediction = NOISE if own is None else edm(own)
        entries = int(scheduler.config.get("num_train_timesteps", 1000))
        for count in (entries - 1, entries):
            self.scheduler.set_timesteps(count)
            timesteps = self.scheduler.timesteps
            self.timesteps, self._index_of = timesteps.unique_consecutive(return_inverse=True)
            if (
                own is not None
                or float(self.timesteps[0] - self.timesteps[-1]) == len(self.timesteps) - 1
            ):
                break

    def set(self, index: int, ratio: float) -> float:
        """Set the noise level of a timestep to σ/α = ratio; return its α."""
        if index >= len(self.timesteps):
            raise ValueError(
                f"times: expected at most {len(self.timesteps) - 1} steps, got more; give the "
                "scheduler a larger num_train_timesteps"
            )
        timestep = self.timesteps[index]
        sigmas, alphas = (getattr(self.scheduler, name, None) for name in _TABLES)
        if isinstance(sigmas, Tensor):
            sigmas[(self._index_of == index).nonzero()[:, 0]] = ratio
        if isinstance(alphas, Tensor) and 0 <= int(timestep) < len(alphas):
            alphas[int(timestep)] = 1 / (1 + ratio**2)
        one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        alpha, sigma = (
            float(self.scheduler.add_noise(a, b, timestep.reshape(1)))
            for a, b in ((one, zero), (zero, one))
        )
        if not math.isclose(sigma / alpha, ratio, rel_tol=1e-5, abs_tol=1e-7):
            raise ValueError(
                f"scheduler: expected {type(self.scheduler).__name__} to use the noise levels of "
                f"sigmas or alphas_cumprod, but at timestep {float(timestep):g} its add_noise has "
                f"σ/α = {sigma / alpha:.4g} where {ratio:.4g} was set; write its run as a function "
                "for LoopSampler"
            )
        if index == 0:
            self.scale = alpha
        return alpha


def _arguments(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters
