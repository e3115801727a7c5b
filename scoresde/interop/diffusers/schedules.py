r"""What the configuration of a diffusers scheduler says of the diffusion, and back.

| class | diffusion | label | output |
|---|---|---|---|
| DDPM, DDIM, DPMSolver, UniPC, DEIS, Euler, Heun … | ``DDPM(betas)`` | index | as it says |
| ScoreSdeVe | ``VESDE(sigma_min, sigma_max)`` | σ(t) | score |
| EDMEuler, EDMDPMSolverMultistep | ``EDMSDE(sigma_min, sigma_max)`` | ¼ ln σ | EDM's F |
| FlowMatchEulerDiscrete | ``RectifiedFlow`` | N t | flow |

A table's network tells noise, data or velocity (``prediction_type``).

Timestep i of a table with N entries is the time t = (i + 1)/N here, where t = 0 is the data.
Diffusers keeps its tables in float32; here they are float64, so that α and σ differ by 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde._core.checks import check_integer, check_positive, summarize
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
"""What a scheduler takes where its configuration says nothing: older files leave entries out."""

_PREDICTIONS: dict[str, Prediction] = {
    "epsilon": NOISE,
    "sample": DATA,
    "v_prediction": VELOCITY,
}

_SCHEDULES = "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"

_NEAR_NOISE = 1 - 1e-5
"""Where a rectified flow ends here: at t = 1 itself nothing is left of the data."""


class Process(NamedTuple):
    """A diffusion, and how its network is told of it."""

    sde: GaussianSDE
    prediction: Prediction
    label: Label


def settings(scheduler: object) -> Settings:
    """Return all entries of a scheduler, its configuration or a file's, its class's name included.

    Raises:
        TypeError: if it is none of these.
        ValueError: if the class is not told.
    """
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping):
        raise TypeError(
            f"scheduler: expected a scheduler of diffusers or its configuration, got "
            f"{summarize(scheduler)}; read scheduler_config.json as a dictionary"
        )
    told = dict(config)
    if config is not scheduler:
        told["_class_name"] = type(scheduler).__name__
    name = told.get("_class_name")
    if not isinstance(name, str):
        raise ValueError(
            f"scheduler: expected an entry '_class_name' such as 'DDPMScheduler', got "
            f"{summarize(name)}; files have it, of a scheduler's .config pass the scheduler itself"
        )
    return DEFAULTS.get(name, _TABLE if "beta_schedule" in told else {}) | told


def only(told: Settings, key: str, *values: object) -> Any:
    """Return an entry that may have these values alone, of which the first is the default.

    Raises:
        ValueError: if it has another.
    """
    value = told.get(key, values[0])
    if value not in values:
        raise ValueError(
            f"scheduler: expected {key} to be {' or '.join(map(repr, values))}, got "
            f"{summarize(value)}; other settings of {told['_class_name']} have no counterpart here"
        )
    return value


def process(scheduler: object) -> Process:
    """Return the diffusion that a scheduler belongs to, with its network's label and output.

    Raises:
        TypeError: if it is no scheduler and no configuration.
        ValueError: if the library does not have it.
    """
    told = settings(scheduler)
    match told["_class_name"]:
        case "ScoreSdeVeScheduler":
            return Process(VESDE(*_positive(told, "sigma_min", "sigma_max")), SCORE, by_sigma)
        case "EDMEulerScheduler" | "EDMDPMSolverMultistepScheduler":
            only(told, "prediction_type", "epsilon")
            (sigma_data,) = _positive(told, "sigma_data")
            return Process(
                EDMSDE(*_positive(told, "sigma_min", "sigma_max")),
                edm(sigma_data),
                LogSNRLabel(-0.25),
            )
        case "FlowMatchEulerDiscreteScheduler":
            scale = check_integer("scheduler: num_train_timesteps", told["num_train_timesteps"], 1)
            return Process(RectifiedFlow(T=_NEAR_NOISE), FLOW, TimeLabel(float(scale)))
    if "beta_schedule" not in told:
        raise ValueError(
            f"scheduler: expected one of {', '.join(DEFAULTS)} or another with a table of betas, "
            f"got {told['_class_name']}; tell the diffusion as sde="
        )
    only(told, "use_flow_sigmas", False, None)
    only(told, "timestep_type", "discrete")
    return Process(
        _table(told), _PREDICTIONS[only(told, "prediction_type", *_PREDICTIONS)], by_index
    )


def _numbers(key: str, values: object) -> Tensor:
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"scheduler: expected {key} to be a list of numbers, got {summarize(values)}; they are "
            "the variances that the steps add"
        ) from None


def _positive(told: Settings, *keys: str) -> list[float]:
    return [check_positive(f"scheduler: {key}", told[key]) for key in keys]


def _table(told: Settings) -> DDPM:
    """Return the table of betas, in float64."""
    if told["trained_betas"] is not None:
        table = DDPM(_numbers("trained_betas", told["trained_betas"]))
    else:
        N = check_integer("scheduler: num_train_timesteps", told["num_train_timesteps"], 2)
        start, end = (
            check_positive(f"scheduler: {k}", told[k]) for k in ("beta_start", "beta_end")
        )
        match only(told, "beta_schedule", *_SCHEDULES):
            case "linear":
                table = DDPM.linear(start, end, N)
            case "scaled_linear":
                table = DDPM.scaled_linear(start, end, N)
            case "sigmoid":
                table = DDPM.sigmoid(start, end, N)
            case _:
                table = DDPM.cosine(N)
    return table.zero_terminal_snr() if told["rescale_betas_zero_snr"] else table


# --- the way out


def scheduler_config(
    sde: GaussianSDE, prediction: Prediction = NOISE, steps: int = 1000
) -> dict[str, Any]:
    r"""Return the configuration of a diffusers scheduler for a diffusion, as plain JSON data.

    Which one is told by the two curves:

    | curves | scheduler |
    |---|---|
    | α² + σ² = 1 | ``DDPMScheduler`` with the table 1 − β_i = (α(t_i)/α(t_{i−1}))², t_i = i T/N |
    | α = 1, σ = t | ``EDMEulerScheduler`` |
    | α = 1, log σ linear in t in [0, 1] | ``ScoreSdeVeScheduler`` |
    | α = 1 − t, σ = t | ``FlowMatchEulerDiscreteScheduler`` |

    Any scheduler with the same table takes it: ``DDIMScheduler.from_config(…)``.

    Args:
        sde: the diffusion.
        prediction: what the network of a table predicts: NOISE, DATA or VELOCITY.
        steps: N, how many entries a table has; a table of the library keeps its own.

    Returns:
        A dictionary to hand to ``getattr(diffusers, config["_class_name"]).from_config``.

    Raises:
        TypeError: if ``sde`` is not Gaussian.
        ValueError: if diffusers has no scheduler for it, or none with that prediction.

    Example:
        >>> from scoresde import VPSDE
        >>> config = scheduler_config(VPSDE(), steps=500)
        >>> config["_class_name"], len(config["trained_betas"])
        ('DDPMScheduler', 500)
    """
    if not isinstance(sde, GaussianSDE):
        raise TypeError(
            f"sde: expected a GaussianSDE such as VPSDE(), got {type(sde).__name__}; schedulers "
            "know of α and σ alone"
        )
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
        "schedulers of diffusers have no others"
    )


def _geometric(sigma: Tensor) -> bool:
    steps = sigma.log().diff()
    return torch.allclose(steps, steps[:1], rtol=1e-6, atol=0)


def _table_config(sde: GaussianSDE, prediction: Prediction, steps: int) -> dict[str, Any]:
    names = {value: key for key, value in _PREDICTIONS.items()}
    if prediction not in names:
        raise ValueError(
            f"prediction: expected NOISE, DATA or VELOCITY, got {prediction!r}; schedulers of "
            "diffusers know no other"
        )
    own = getattr(sde, "times", None)
    count = check_integer("steps", steps, 2) if own is None else len(own)
    knots = torch.linspace(0.0, sde.T, count + 1, dtype=torch.float64)
    betas = -torch.expm1(2 * sde.log_alpha(knots).diff())
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": count,
        "trained_betas": betas.tolist(),
        "prediction_type": names[prediction],
    }
