r"""The samplers and times that are equivalent to diffusers' schedulers.

========================  =========================================================================
scheduler                 sampler
========================  =========================================================================
DDPM                      ``Ancestral``: variance 0 ("fixed_small") or 1 ("fixed_large")
DDIM, EulerDiscrete       ``Exponential(order=1)``
EDMEuler                  ``Exponential(order=1)``
FlowMatchEulerDiscrete    ``Exponential(order=1)``
EulerAncestralDiscrete    ``Ancestral()``
DPMSolverMultistep        "dpmsolver++": ``Exponential(order)``; "dpmsolver": ``DEIS(order)``;
                          "sde-": η = 1
EDMDPMSolverMultistep     the same
DEISMultistep             ``DEIS(order)``
UniPCMultistep            ``Exponential(order, corrector=order + 1)``; ``DEIS`` if ``predict_x0`` is
                          False
HeunDiscrete              ``Heun``
ScoreSdeVe                ``PredictorCorrector(ReverseDiffusion(), Langevin(snr, published=True))``
========================  =========================================================================

With the same network outputs and the same noise the samples are equal, except for these
differences:

* Samples are not clipped (``clip_sample``, ``thresholding``).
* Here the network is evaluated at the time of the state.  Diffusers rounds the network's timestep
  on Karras, Lu, exponential and beta grids, and DDIM steps by N // n, independently of the next
  timestep; the two agree for "leading" spacing, and for "trailing" spacing if n divides N.
* ``lower_order_final`` lowers the order of the final steps if there are fewer than 15, and that of
  UniPC's final steps always.  Here the order is constant, except that a step more than three times
  as long as the previous one has order 1 where the coefficients are exact (``DEIS``,
  ``solver_type="heun"``).
* In the first steps, and in UniPC's predictor of order 2, diffusers uses the midpoint weight of the
  derivative; the weights here are exact, as those of diffusers are with ``solver_type="heun"``.
* The weight of the second derivative in "sde-dpmsolver++" of order 3 has the wrong sign in
  diffusers, which reduces it to order 1; here it has the published sign.
* The Euler, Heun and EDM schedulers start from N(0, σ_max² + 1) with some settings, the samplers
  here from the prior of the SDE.
* A final step to σ = 0 is the final denoising here, without noise (diffusers adds some with
  "fixed_large" if the last timestep is not 0).  ScoreSdeVe makes one more correction before it;
  this is encoded by a final time 0.
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
from scoresde.interop.diffusers.schedules import Settings, forward_process, read_settings, supported
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


class SamplerSettings(NamedTuple):
    """Arguments of ``sample(score, shape, sampler, times=times, denoise=denoise)``.

    Attributes:
        sampler: the sampler.
        times: its times, decreasing, ``(N+1,)``, float64.
        denoise: whether the last state is denoised.
    """

    sampler: Sampler
    times: Tensor
    denoise: bool


def sampler_settings(scheduler: object, steps: int) -> SamplerSettings:
    r"""Return the sampler, its times and the final denoising that are equivalent to a scheduler.

    Args:
        scheduler: a scheduler of diffusers, or its configuration with the entry ``_class_name``.
        steps: diffusers' ``num_inference_steps``; includes the final denoising, if there is one.

    Returns:
        Arguments of :func:`scoresde.samplers.sample`.

    Raises:
        TypeError: if ``scheduler`` is neither a scheduler nor a configuration, or ``steps`` no
            integer.
        ValueError: if the library does not have the algorithm or one of its settings, or if
            ``steps`` is out of range.

    Example:
        >>> config = {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}
        >>> sampler, times, denoise = sampler_settings(config, 4)
        >>> sampler.order, times, denoise
        (1, tensor([1.0000, 0.7500, 0.5000, 0.2500], dtype=torch.float64), True)

    The noise of DDIM is no setting of its scheduler; with noise the sampler is
    ``Exponential(order=1, eta=DDIMNoise(eta))``.
    """
    settings = read_settings(scheduler)
    name = settings["_class_name"]
    if name not in _SAMPLERS:
        raise ValueError(
            f"scheduler: expected one of {', '.join(_SAMPLERS)}, got {name}; its SDE works with "
            "any sampler of scoresde.samplers"
        )
    check_integer("steps", steps, minimum=2)
    sde = forward_process(settings).sde
    times = _TIMES.get(name, _table_times)(sde, settings, steps)
    return SamplerSettings(_SAMPLERS[name](settings), times, _ends_in_data(settings))


# --- samplers


_VARIANCES = {
    "fixed_small": 0.0,
    "fixed_small_log": 0.0,
    "fixed_large": 1.0,
    "fixed_large_log": 1.0,
}


def _ancestral(settings: Settings) -> Sampler:
    return Ancestral(_VARIANCES[supported(settings, "variance_type", *_VARIANCES)])


def _order(settings: Settings) -> int:
    return check_integer("scheduler: solver_order", settings["solver_order"], minimum=1)


def _dpm_solver(settings: Settings) -> Sampler:
    algorithms = "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"
    algorithm = supported(settings, "algorithm_type", *algorithms)
    eta = 1.0 if algorithm.startswith("sde") else 0.0
    order = _order(settings)
    if not algorithm.endswith("++"):
        return DEIS(order, eta)
    midpoint = supported(settings, "solver_type", "midpoint", "heun") == "midpoint"
    return Exponential(order, eta, published=order == 3 or (order == 2 and midpoint))


def _unipc(settings: Settings) -> Sampler:
    order = _order(settings)
    kind = Exponential if supported(settings, "predict_x0", True, False) else DEIS
    return kind(order, corrector=order + 1)


def _predictor_corrector(settings: Settings) -> Sampler:
    corrector = Langevin(settings["snr"], published=True)
    return PredictorCorrector(ReverseDiffusion(), corrector, settings["correct_steps"])


_SAMPLERS: dict[str, Callable[[Settings], Sampler]] = {
    "DDPMScheduler": _ancestral,
    "DDIMScheduler": lambda settings: Exponential(order=1),
    "DPMSolverMultistepScheduler": _dpm_solver,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": lambda settings: DEIS(_order(settings)),
    "EulerDiscreteScheduler": lambda settings: Exponential(order=1),
    "EulerAncestralDiscreteScheduler": lambda settings: Ancestral(),
    "HeunDiscreteScheduler": lambda settings: Heun(),
    "ScoreSdeVeScheduler": _predictor_corrector,
    "EDMEulerScheduler": lambda settings: Exponential(order=1),
    "EDMDPMSolverMultistepScheduler": _dpm_solver,
    "FlowMatchEulerDiscreteScheduler": lambda settings: Exponential(order=1),
}


# --- times


_DROPS_LAST = frozenset(  # take n + 1 timesteps and drop the last
    {"DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"}
)
_UNROUNDED = frozenset(  # do not round their timesteps
    {"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"}
)


def _ends_in_data(settings: Settings) -> bool:
    """Whether the last step is to σ = 0 rather than to the lowest σ of the table."""
    final = supported(settings, "final_sigmas_type", "zero", "sigma_min")
    return bool(final == "zero" and settings.get("set_alpha_to_one", True))


def _table_times(sde: GaussianSDE, settings: Settings, steps: int) -> Tensor:
    """Return the times on a table, by linear interpolation of ρ = σ/α as in diffusers."""
    table_times: Any = sde.times
    table = torch.exp(-sde.half_logsnr(table_times)).numpy()
    extra = settings["_class_name"] in _DROPS_LAST
    timesteps = _timesteps(settings, steps, len(table), extra)
    ratio = np.interp(timesteps, np.arange(len(table)), table)
    ends = (table[-1], table[0]) if extra else (ratio[0], ratio[-1])
    ratio = _ratios(settings, steps, *ends, ratio)
    if not _ends_in_data(settings) and ratio[-1] > table[0] * (1 + 1e-6):
        ratio = np.append(ratio, table[0])
    return sde.time_at(-torch.log(torch.from_numpy(ratio)))


def _timesteps(settings: Settings, steps: int, N: int, extra: bool) -> np.ndarray:
    """Return the decreasing timesteps in [0, N − 1]."""
    if steps > N - extra:
        raise ValueError(
            f"steps: expected at most {N - extra} for a table of {N}, got {steps}; for more "
            "steps pass a grid of scoresde.samplers to sample"
        )
    count = steps + extra
    match supported(settings, "timestep_spacing", "leading", "linspace", "trailing"):
        case "linspace":
            spaced = np.linspace(0, N - 1, count)
            spaced = spaced if settings["_class_name"] in _UNROUNDED else spaced.round()
        case "trailing":
            return np.arange(N, 0, -N / steps).round()[:steps] - 1
        case _:
            spaced = np.arange(count) * (N // count) + settings["steps_offset"]
    return spaced[::-1][:steps]


def _ratios(
    settings: Settings, steps: int, high: float, low: float, ratio: np.ndarray
) -> np.ndarray:
    """Return the ratios ρ of the grid of the settings, from ``high`` to ``low``."""
    supported(settings, "sigma_min", None)
    supported(settings, "sigma_max", None)
    supported(settings, "interpolation_type", "linear")
    supported(settings, "lambda_min_clipped", -math.inf, None)
    if settings.get("use_karras_sigmas"):
        return _karras(high, low, steps, rho=7.0)
    if settings.get("use_exponential_sigmas") or settings.get("use_lu_lambdas"):
        return np.geomspace(high, low, steps)
    if settings.get("use_beta_sigmas"):
        quantiles: np.ndarray = betaincinv(0.6, 0.6, np.linspace(1, 0, steps))
        return low + (high - low) * quantiles
    return ratio


def _karras(high: float, low: float, steps: int, rho: float) -> np.ndarray:
    return np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho


def _edm_times(sde: GaussianSDE, settings: Settings, steps: int) -> Tensor:
    if supported(settings, "sigma_schedule", "karras", "exponential") == "karras":
        rho = check_positive("scheduler: rho", settings["rho"])
        times = _karras(sde.T, sde.t_min, steps, rho)
    else:
        times = np.geomspace(sde.T, sde.t_min, steps)
    return torch.from_numpy(times).clamp(sde.t_min, sde.T)


def _ve_times(sde: GaussianSDE, settings: Settings, steps: int) -> Tensor:
    """Return the official times, and 0 for the correction at the last of them."""
    end = check_positive("scheduler: sampling_eps", settings["sampling_eps"])
    return torch.cat([torch.linspace(sde.T, end, steps).double(), torch.zeros(1).double()])


def _flow_times(sde: GaussianSDE, settings: Settings, steps: int) -> Tensor:
    for option in ("dynamic_shifting", "karras_sigmas", "exponential_sigmas", "beta_sigmas"):
        supported(settings, f"use_{option}", False, None)
    for option in ("shift_terminal", "invert_sigmas", "stochastic_sampling"):
        supported(settings, option, None, False)
    shift = check_positive("scheduler: shift", settings["shift"])
    lowest = shift / (
        settings["num_train_timesteps"] + shift - 1
    )  # diffusers applies the shift twice
    sigma = torch.linspace(1.0, lowest, steps, dtype=torch.float64)
    return (shift * sigma / (1 + (shift - 1) * sigma)).clamp(max=sde.T)


_TIMES: dict[str, Callable[[GaussianSDE, Settings, int], Tensor]] = {
    "EDMEulerScheduler": _edm_times,
    "EDMDPMSolverMultistepScheduler": _edm_times,
    "ScoreSdeVeScheduler": _ve_times,
    "FlowMatchEulerDiscreteScheduler": _flow_times,
}
"""The times of schedulers without a table of betas."""
