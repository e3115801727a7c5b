r"""The samplers of diffusers' schedulers, as recipes of this library.

| scheduler | sampler |
|---|---|
| DDPM | ``Ancestral``: variance 0 ("fixed_small") or 1 ("fixed_large") |
| DDIM, EulerDiscrete, EDMEuler, FlowMatchEulerDiscrete | ``Exponential(order=1)`` |
| EulerAncestralDiscrete | ``Ancestral()`` |
| DPMSolverMultistep, EDMDPMSolverMultistep, "dpmsolver++" | ``Exponential(order)``; "sde-": η = 1 |
| DPMSolverMultistep, "dpmsolver" | ``DEIS(order)``; "sde-": η = 1 |
| DEISMultistep | ``DEIS(order)`` |
| UniPCMultistep | ``Exponential(order, corrector=order + 1)``; of the noise, ``DEIS`` |
| HeunDiscrete | ``Heun`` |
| ScoreSdeVe | ``PredictorCorrector(ReverseDiffusion(), Langevin(snr, published=True))`` |

The same network outputs and the same noise give the same samples, but for habits of theirs that are
not copied:

* Samples are not clipped (``clip_sample``, ``thresholding``).
* Network and state see the same time.  Theirs hears a rounded one where the grid is Karras', Lu's,
  exponential or beta, and DDIM steps by N // n wherever the next timestep is, which are the same
  for "leading" spacing, and for "trailing" where n divides N.
* ``lower_order_final`` lowers the order of the last of fewer than 15 steps, and of UniPC's last
  steps always.  Here it stays; but a step more than three times as long as the one before is of
  order 1 where the coefficients are exact (``DEIS``, ``solver_type="heun"``).
* In their first steps, and in UniPC's predictor of order 2, the slope is weighed as at mid-step;
  ours are exact, as theirs are with ``solver_type="heun"``.
* The curvature's weight of "sde-dpmsolver++" of order 3 has a sign of its own there, which leaves
  it with order 1; ours is the published one.
* Euler, Heun and EDM start from N(0, σ_max² + 1) where they call for it.  Ours is the prior of the
  diffusion.
* Last steps to σ = 0 are the denoising at the end, whose noise ("fixed_large", at a last timestep
  other than 0) is left out.  ScoreSdeVe corrects once more before; a last time 0 stands for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from scoresde._core.checks import check_integer, check_positive
from scoresde.interop.diffusers.schedules import Settings, only, process, settings
from scoresde.samplers import (
    DEIS,
    Ancestral,
    Exponential,
    Heun,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Sampler,
)
from scoresde.sdes import GaussianSDE


class Recipe(NamedTuple):
    """How a scheduler samples: ``sample(score, shape, sampler, times=times, denoise=denoise)``.

    Attributes:
        sampler: the steps.
        times: where they are made, falling, ``(N+1,)``, float64.
        denoise: whether the last state is denoised.
    """

    sampler: Sampler
    times: Tensor
    denoise: bool


def recipe(scheduler: object, steps: int) -> Recipe:
    r"""Return the sampler, the times and the end that a scheduler stands for.

    Args:
        scheduler: a scheduler of diffusers, or its configuration with the entry ``_class_name``.
        steps: how many timesteps it would be set to, ``num_inference_steps``; the last of them is
            the denoising where there is one.

    Returns:
        What :func:`scoresde.samplers.sample` takes.

    Raises:
        TypeError: if it is no scheduler and no configuration.
        ValueError: if the library does not have its algorithm or one of its settings.

    Example:
        >>> config = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}
        >>> sampler, times, denoise = recipe(config, 4)
        >>> sampler.order, times, denoise
        (1, tensor([1.0000, 0.7500, 0.5000, 0.2500], dtype=torch.float64), True)

    DDIM's noise is an argument of its step: ``Exponential(order=1, eta=DDIMNoise(eta))`` has it.
    """
    told = settings(scheduler)
    name = told["_class_name"]
    if name not in _SAMPLERS:
        raise ValueError(
            f"scheduler: expected one of {', '.join(_SAMPLERS)}, got {name}; its diffusion can be "
            "sampled by any sampler of scoresde.samplers"
        )
    check_integer("steps", steps, minimum=2)
    sde = process(told).sde
    times = _TIMES.get(name, _table_times)(sde, told, steps)
    return Recipe(_SAMPLERS[name](told), times, _ends_in_data(told))


# --- the steps


_VARIANCES = {
    "fixed_small": 0.0,
    "fixed_small_log": 0.0,
    "fixed_large": 1.0,
    "fixed_large_log": 1.0,
}


def _ancestral(told: Settings) -> Sampler:
    return Ancestral(_VARIANCES[only(told, "variance_type", *_VARIANCES)])


def _order(told: Settings) -> int:
    return check_integer("scheduler: solver_order", told["solver_order"], minimum=1)


def _dpm_solver(told: Settings) -> Sampler:
    algorithms = "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"
    algorithm = only(told, "algorithm_type", *algorithms)
    eta = 1.0 if algorithm.startswith("sde") else 0.0
    order = _order(told)
    if not algorithm.endswith("++"):
        return DEIS(order, eta)
    midpoint = only(told, "solver_type", "midpoint", "heun") == "midpoint"
    return Exponential(order, eta, published=order == 3 or (order == 2 and midpoint))


def _unipc(told: Settings) -> Sampler:
    order = _order(told)
    kind = Exponential if only(told, "predict_x0", True, False) else DEIS
    return kind(order, corrector=order + 1)


def _predictor_corrector(told: Settings) -> Sampler:
    corrector = Langevin(told["snr"], published=True)
    return PredictorCorrector(ReverseDiffusion(), corrector, told["correct_steps"])


_SAMPLERS: dict[str, Callable[[Settings], Sampler]] = {
    "DDPMScheduler": _ancestral,
    "DDIMScheduler": lambda told: Exponential(order=1),
    "DPMSolverMultistepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": lambda told: DEIS(_order(told)),
    "EulerDiscreteScheduler": lambda told: Exponential(order=1),
    "EulerAncestralDiscreteScheduler": lambda told: Ancestral(),
    "HeunDiscreteScheduler": lambda told: Heun(),
    "ScoreSdeVeScheduler": _predictor_corrector,
    "EDMEulerScheduler": lambda told: Exponential(order=1),
    "EDMDPMSolverMultistepScheduler": _dpm_solver,
    "FlowMatchEulerDiscreteScheduler": lambda told: Exponential(order=1),
}


# --- the times


_BEYOND = frozenset(  # set n + 1 timesteps and leave the last out
    {"DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"}
)
_BETWEEN = frozenset(  # do not round their timesteps
    {"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"}
)


def _ends_in_data(told: Settings) -> bool:
    """Whether the last step goes to σ = 0, and not to the lowest σ of the table."""
    final = only(told, "final_sigmas_type", "zero", "sigma_min")
    return final == "zero" and told.get("set_alpha_to_one", True)


def _table_times(sde: GaussianSDE, told: Settings, steps: int) -> Tensor:
    """Return the times at which a table is read, through ρ = σ/α as schedulers interpolate it."""
    knots: Any = sde.times
    table = torch.exp(-sde.half_logsnr(knots)).numpy()
    extra = told["_class_name"] in _BEYOND
    timesteps = _timesteps(told, steps, len(table), extra)
    ratio = np.interp(timesteps, np.arange(len(table)), table)
    ends = (table[-1], table[0]) if extra else (ratio[0], ratio[-1])
    ratio = _warped(told, steps, *ends, ratio)
    if not _ends_in_data(told) and ratio[-1] > table[0] * (1 + 1e-6):
        ratio = np.append(ratio, table[0])
    return sde.time_at(-torch.log(torch.from_numpy(ratio)))


def _timesteps(told: Settings, steps: int, N: int, extra: bool) -> np.ndarray:
    """Return the falling timesteps in [0, N − 1]."""
    if steps > N - extra:
        raise ValueError(
            f"steps: expected at most {N - extra} for a table of {N}, got {steps}; other grids go "
            "between its entries"
        )
    count = steps + extra
    match only(told, "timestep_spacing", "leading", "linspace", "trailing"):
        case "linspace":
            spaced = np.linspace(0, N - 1, count)
            spaced = spaced if told["_class_name"] in _BETWEEN else spaced.round()
        case "leading":
            spaced = np.arange(count) * (N // count) + told["steps_offset"]
        case "trailing":
            return np.arange(N, 0, -N / steps).round()[:steps] - 1
    return spaced[::-1][:steps]


def _warped(told: Settings, steps: int, high: float, low: float, ratio: np.ndarray) -> np.ndarray:
    """Return the ratios of the grid that is asked for, between two ends."""
    only(told, "sigma_min", None)
    only(told, "sigma_max", None)
    only(told, "interpolation_type", "linear")
    only(told, "lambda_min_clipped", -math.inf, None)
    if told.get("use_karras_sigmas"):
        return _karras(high, low, steps, rho=7.0)
    if told.get("use_exponential_sigmas") or told.get("use_lu_lambdas"):
        return np.geomspace(high, low, steps)
    if told.get("use_beta_sigmas"):
        return low + (high - low) * betaincinv(0.6, 0.6, np.linspace(1, 0, steps))
    return ratio


def _karras(high: float, low: float, steps: int, rho: float) -> np.ndarray:
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def _edm_times(sde: GaussianSDE, told: Settings, steps: int) -> Tensor:
    if only(told, "sigma_schedule", "karras", "exponential") == "karras":
        rho = check_positive("scheduler: rho", told["rho"])
        times = _karras(sde.T, sde.t_min, steps, rho)
    else:
        times = np.geomspace(sde.T, sde.t_min, steps)
    return torch.from_numpy(times).clamp(sde.t_min, sde.T)


def _ve_times(sde: GaussianSDE, told: Settings, steps: int) -> Tensor:
    """Return the official times and 0, for the correction at the last of them."""
    end = check_positive("scheduler: sampling_eps", told["sampling_eps"])
    return torch.cat([torch.linspace(1.0, end, steps).double(), torch.zeros(1).double()])


def _flow_times(sde: GaussianSDE, told: Settings, steps: int) -> Tensor:
    for option in ("dynamic_shifting", "karras_sigmas", "exponential_sigmas", "beta_sigmas"):
        only(told, f"use_{option}", False, None)
    for option in ("shift_terminal", "invert_sigmas", "stochastic_sampling"):
        only(told, option, None, False)
    shift = check_positive("scheduler: shift", told["shift"])
    lowest = shift / (told["num_train_timesteps"] + shift - 1)  # shifted, and shifted again
    sigma = torch.linspace(1.0, lowest, steps, dtype=torch.float64)
    return (shift * sigma / (1 + (shift - 1) * sigma)).clamp(max=sde.T)


_TIMES: dict[str, Callable[[GaussianSDE, Settings, int], Tensor]] = {
    "EDMEulerScheduler": _edm_times,
    "EDMDPMSolverMultistepScheduler": _edm_times,
    "ScoreSdeVeScheduler": _ve_times,
    "FlowMatchEulerDiscreteScheduler": _flow_times,
}
"""Where the times are not those of a table of betas."""
