"""Our samplers as they are compared: the one default, and the presets with their own settings."""

from __future__ import annotations

from sampling.methods import Ours
from scoresde import VESDE, VPSDE, GaussianSDE, SubVPSDE
from scoresde.samplers import (
    RK4,
    AdamsBashforth,
    RungeKutta,
    Sampler,
    ddim,
    ddpm,
    deis,
    dpm_solver,
    edm_heun,
    pc,
    sa_solver,
    unipc,
)

SDES: tuple[GaussianSDE, ...] = (VPSDE(), SubVPSDE(), VESDE())

DEFAULT: Sampler = AdamsBashforth()
PRESETS: dict[str, Sampler] = {
    "ours: RungeKutta(RK4)": RungeKutta(RK4),
    "ours: ddim": ddim(),
    "ours: dpm_solver(2)": dpm_solver(),
    "ours: dpm_solver(3)": dpm_solver(3),
    "ours: unipc": unipc(),
    "ours: deis": deis(),
    "ours: edm_heun": edm_heun(),
    "ours: ddpm": ddpm(),
    "ours: dpm_solver(eta=1)": dpm_solver(eta=1.0),
    "ours: sa_solver": sa_solver(),
    "ours: edm_heun(churn=40)": edm_heun(churn=40.0),
    "ours: pc": pc(),
}


def label(sde: GaussianSDE) -> str:
    """Return VP, sub-VP or VE."""
    return {"VPSDE": "VP", "SubVPSDE": "sub-VP", "VESDE": "VE"}[type(sde).__name__]


def default_on(sde: GaussianSDE, moments: bool = True, denoise: bool | None = False) -> Ours:
    """Return our default under a diffusion, with or without the data's moments known."""
    name = f"ours: default, {label(sde)}" + ("" if moments else ", moments unknown")
    return Ours(name, DEFAULT, sde, denoise, moments)


def presets(sde: GaussianSDE, denoise: bool | None = False) -> tuple[Ours, ...]:
    """Return the default and every preset under a diffusion."""
    named = (Ours(name, sampler, sde, denoise) for name, sampler in PRESETS.items())
    return (default_on(sde, denoise=denoise), *named)


def deterministic(sde: GaussianSDE) -> tuple[Ours, ...]:
    """Return those that draw no noise."""
    return tuple(method for method in presets(sde) if not method.random)
