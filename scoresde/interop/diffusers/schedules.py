r"""The forward process of a diffusers scheduler, and the scheduler of a forward process.

=============================================  ================================  ======  ==========
scheduler                                      SDE                               label   output
=============================================  ================================  ======  ==========
DDPM, DDIM, DPMSolver, UniPC, DEIS, Euler, …   ``DDPM(betas)``                   index   see below
ScoreSdeVe                                     ``VESDE(sigma_min, sigma_max)``   σ(t)    score
EDMEuler, EDMDPMSolverMultistep                ``EDMSDE(sigma_min, sigma_max)``  ¼ ln σ  EDM's F
FlowMatchEulerDiscrete                         ``RectifiedFlow``                 N t     flow
=============================================  ================================  ======  ==========

With a table of betas, ``prediction_type`` is one of noise, data and velocity.

Timestep i of a table with N entries is the time t = (i + 1)/N here, since t = 0 is the data.
Tables are float32 in diffusers and float64 here; α and σ differ by 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde._core.checks import check_instance, check_integer, check_positive, summarize
from scoresde.scores.labels import Label, LogSNRLabel, TimeLabel, by_index, by_sigma
from scoresde.scores.predictions import DATA, FLOW, NOISE, SCORE, VELOCITY, Prediction, edm
from scoresde.sdes import DDPM, EDMSDE, VESDE, GaussianSDE, RectifiedFlow

Settings = dict[str, Any]

_TABLE: Settings = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
_LEADING: Settings = _TABLE | {"timestep_spacing": "leading"}
_EDM: Settings = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}
_MULTISTEP: Settings = {"solver_order": 2, "solver_type": "midpoint", "final_sigmas_type": "zero"}
_ALGORITHM: Settings = _MULTISTEP | {"algorithm_type": "dpmsolver++"}

DEFAULTS: dict[str, Settings] = {
    "DDPMScheduler": _LEADING | {"variance_type": "fixed_small"},
    "DDIMScheduler": _LEADING | {"set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": _TABLE | _ALGORITHM,
    "UniPCMultistepScheduler": _TABLE | _MULTISTEP | {"solver_type": "bh2", "predict_x0": True},
    "DEISMultistepScheduler": _TABLE | {"solver_order": 2, "final_sigmas_type": "sigma_min"},
    "EulerDiscreteScheduler": _TABLE
    | {"final_sigmas_type": "zero", "interpolation_type": "linear", "timestep_type": "discrete"},
    "EulerAncestralDiscreteScheduler": _TABLE,
    "HeunDiscreteScheduler": _TABLE | {"beta_start": 0.00085, "beta_end": 0.012},
    "ScoreSdeVeScheduler": {
        "num_train_timesteps": 2000,
        "snr": 0.15,
        "sigma_min": 0.01,
        "sigma_max": 1348.0,
        "sampling_eps": 1e-5,
        "correct_steps": 1,
    },
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM | _ALGORITHM,
    "FlowMatchEulerDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}
"""Default settings of the schedulers: files of older versions lack some entries."""

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": NOISE,
    "sample": DATA,
    "v_prediction": VELOCITY,
}

_SCHEDULES = "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"

_FLOW_END = 1 - 1e-5
"""T of a rectified flow: α(1) = 0, so that t = 1 itself has no finite log-SNR."""


class ForwardProcess(NamedTuple):
    """An SDE and the conventions of a network for it.

    Attributes:
        sde: the SDE.
        prediction: the quantity that the network predicts.
        label: the network's time argument.
    """

    sde: GaussianSDE
    prediction: Prediction
    label: Label


def read_settings(scheduler: object) -> Settings:
    """Return all settings of a scheduler or configuration, with its class as ``_class_name``.

    Raises:
        TypeError: if ``scheduler`` is neither a scheduler nor a configuration.
        ValueError: if a configuration has no ``_class_name``.
    """
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping):
        raise TypeError(
            f"scheduler: expected a scheduler of diffusers or its configuration, got "
            f"{summarize(scheduler)}; pass the scheduler or the dictionary in scheduler_config.json"
        )
    settings = dict(config)
    if config is not scheduler:
        settings["_class_name"] = type(scheduler).__name__
    name = settings.get("_class_name")
    if not isinstance(name, str):
        raise ValueError(
            f"scheduler: expected an entry '_class_name' such as 'DDPMScheduler', got "
            f"{summarize(name)}; instead of scheduler.config pass the scheduler itself"
        )
    return DEFAULTS.get(name, _TABLE if "beta_schedule" in settings else {}) | settings


def supported(settings: Settings, key: str, *values: object) -> Any:
    """Return a setting; ``values`` are the supported ones, the first of them the default.

    Raises:
        ValueError: if the setting has another value.
    """
    value = settings.get(key, values[0])
    if value not in values:
        raise ValueError(
            f"scheduler: expected {key} to be {' or '.join(map(repr, values))}, got "
            f"{summarize(value)}; other values of {settings['_class_name']} are not "
            "supported"
        )
    return value


def forward_process(scheduler: object) -> ForwardProcess:
    """Return the SDE of a scheduler, with the label and the prediction of its networks.

    Args:
        scheduler: a scheduler of diffusers, or its configuration with the entry ``_class_name``.

    Raises:
        TypeError: if ``scheduler`` is neither a scheduler nor a configuration.
        ValueError: if the library does not have its SDE.
    """
    settings = read_settings(scheduler)
    match settings["_class_name"]:
        case "ScoreSdeVeScheduler":
            return ForwardProcess(
                VESDE(*_positive(settings, "sigma_min", "sigma_max")), SCORE, by_sigma
            )
        case "EDMEulerScheduler" | "EDMDPMSolverMultistepScheduler":
            supported(settings, "prediction_type", "epsilon")
            (sigma_data,) = _positive(settings, "sigma_data")
            return ForwardProcess(
                EDMSDE(*_positive(settings, "sigma_min", "sigma_max")),
                edm(sigma_data),
                LogSNRLabel(-0.25),
            )
        case "FlowMatchEulerDiscreteScheduler":
            scale = check_integer(
                "scheduler: num_train_timesteps", settings["num_train_timesteps"], 1
            )
            return ForwardProcess(RectifiedFlow(T=_FLOW_END), FLOW, TimeLabel(float(scale)))
    if "beta_schedule" not in settings:
        raise ValueError(
            f"scheduler: expected one of {', '.join(DEFAULTS)} or another with a table of betas, "
            f"got {settings['_class_name']}; build a ScoreModel with the SDE of its training"
        )
    supported(settings, "use_flow_sigmas", False, None)
    supported(settings, "timestep_type", "discrete")
    return ForwardProcess(
        _table(settings),
        _PREDICTIONS[supported(settings, "prediction_type", *_PREDICTIONS)],
        by_index,
    )


def _numbers(key: str, values: object) -> Tensor:
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"scheduler: expected {key} to be a list of numbers, got {summarize(values)}; pass "
            "the variances of the noise that each step adds"
        ) from None


def _positive(settings: Settings, *keys: str) -> list[float]:
    return [check_positive(f"scheduler: {key}", settings[key]) for key in keys]


def _table(settings: Settings) -> DDPM:
    """Return the SDE of the table of betas, in float64."""
    if settings["trained_betas"] is not None:
        table = DDPM(_numbers("trained_betas", settings["trained_betas"]))
    else:
        N = check_integer("scheduler: num_train_timesteps", settings["num_train_timesteps"], 2)
        start, end = (
            check_positive(f"scheduler: {k}", settings[k]) for k in ("beta_start", "beta_end")
        )
        match supported(settings, "beta_schedule", *_SCHEDULES):
            case "linear":
                table = DDPM.linear(start, end, N)
            case "scaled_linear":
                table = DDPM.scaled_linear(start, end, N)
            case "sigmoid":
                table = DDPM.sigmoid(start, end, N)
            case _:
                table = DDPM.cosine(N)
    return table.zero_terminal_snr() if settings["rescale_betas_zero_snr"] else table


# --- from an SDE to a scheduler


def scheduler_config(
    sde: GaussianSDE, prediction: Prediction = NOISE, steps: int = 1000
) -> dict[str, Any]:
    r"""Return the configuration of the diffusers scheduler of an SDE, as JSON data.

    The curves α and σ determine the scheduler:

    ===================================  ===================================
    curves                               scheduler
    ===================================  ===================================
    α² + σ² = 1                          ``DDPMScheduler``
    α = 1, σ = t                         ``EDMEulerScheduler``
    α = 1, log σ linear in t in [0, 1]   ``ScoreSdeVeScheduler``
    α = 1 − t, σ = t                     ``FlowMatchEulerDiscreteScheduler``
    ===================================  ===================================

    The table of ``DDPMScheduler`` is 1 − β_i = (α(t_i)/α(t_{i−1}))² with t_i = i T/N; other
    schedulers with a table accept the same configuration, ``DDIMScheduler.from_config(…)``.

    Args:
        sde: the SDE.
        prediction: with a table, the quantity the network predicts: NOISE, DATA or VELOCITY.
        steps: N, the number of entries of the table; ignored for an SDE that is itself a table.

    Returns:
        A dictionary for ``getattr(diffusers, config["_class_name"]).from_config``.

    Raises:
        TypeError: if ``sde`` is no :class:`GaussianSDE`, ``prediction`` no :class:`Prediction`, or
            ``steps`` no integer.
        ValueError: if diffusers has no scheduler for the SDE, or none for the prediction.

    Example:
        >>> from scoresde import VPSDE
        >>> config = scheduler_config(VPSDE(), steps=500)
        >>> config["_class_name"], len(config["trained_betas"])
        ('DDPMScheduler', 500)
    """
    check_instance("sde", sde, GaussianSDE, "VPSDE()")
    check_instance("prediction", prediction, Prediction, "NOISE", "pass NOISE, DATA or VELOCITY")
    t = torch.linspace(sde.t_min, sde.T, 257, dtype=torch.float64)
    alpha, sigma, one = sde.alpha(t), sde.sigma(t), torch.ones_like(t)
    if torch.allclose(alpha**2 + sigma**2, one):
        return _table_config(sde, prediction, steps)
    if torch.allclose(alpha, one) and torch.allclose(sigma, t, rtol=1e-6, atol=0):
        ends = {"sigma_min": sde.t_min, "sigma_max": sde.T}
        return {"_class_name": "EDMEulerScheduler", **ends}
    if torch.allclose(alpha, one) and sde.T == 1 and _geometric(sigma):
        ends = {"sigma_min": float(sde.sigma(0.0)), "sigma_max": float(sde.sigma(1.0))}
        return {"_class_name": "ScoreSdeVeScheduler", **ends, "sampling_eps": sde.t_min}
    if torch.allclose(alpha, one - t) and torch.allclose(sigma, t):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    raise ValueError(
        f"sde: expected α² + σ² = 1, or α = 1 with σ = t or geometric, or α = 1 − t, got {sde}; "
        "diffusers has no scheduler for another SDE"
    )


def _geometric(sigma: Tensor) -> bool:
    steps = sigma.log().diff()
    return torch.allclose(steps, steps[:1], rtol=1e-6, atol=0)


def _table_config(sde: GaussianSDE, prediction: Prediction, steps: int) -> dict[str, Any]:
    names = {value: key for key, value in _PREDICTIONS.items()}
    if prediction not in names:
        raise ValueError(
            f"prediction: expected NOISE, DATA or VELOCITY, got {prediction!r}; the "
            "schedulers of diffusers support no other"
        )
    own = getattr(sde, "times", None)
    count = check_integer("steps", steps, 2) if own is None else len(own)
    times = torch.linspace(0.0, sde.T, count + 1, dtype=torch.float64)
    betas = -torch.expm1(2 * sde.log_alpha(times).diff())
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": count,
        "trained_betas": betas.tolist(),
        "prediction_type": names[prediction],
    }
