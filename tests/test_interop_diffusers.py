"""Schedulers of diffusers and the equivalent samplers: equal samples for equal outputs and noise.

Schedulers compute in float32. The differences listed in ``interop.diffusers.samplers`` are tested
too: each is visible, and vanishes where the setting behind it is changed.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import FunctionScore
from scoresde.interop import diffusers as ours
from scoresde.interop.diffusers.schedules import DEFAULTS
from scoresde.samplers import DDIMNoise, Exponential, iterate, sample
from scoresde.scores.predictions import DATA

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # raised in diffusers

MEANS = torch.tensor([[-1.0, 0.5, 0.0], [0.7, -0.2, 0.4], [0.1, 0.1, -0.9]], dtype=torch.float64)
VARIANCE = 0.05


def clean(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] for a mixture of three Gaussians, in closed form."""
    alpha, sigma = torch.as_tensor(alpha).double(), torch.as_tensor(sigma).double()
    std = alpha**2 * VARIANCE + sigma**2
    offset = x.double()[:, None] - alpha * MEANS
    weights = torch.softmax(-offset.square().sum(2) / (2 * std), dim=1)
    return (weights[:, :, None] * (MEANS + alpha * VARIANCE / std * offset)).sum(1)


def scheduler_of(config: dict[str, Any]) -> Any:
    arguments = {key: value for key, value in config.items() if key != "_class_name"}
    return getattr(diffusers, config["_class_name"])(**arguments)


def vp(scheduler: Any, i: int, t: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ of the state at the i-th call."""
    if hasattr(scheduler, "sigmas"):
        ratio = scheduler.sigmas[i].double()
        return 1 / torch.sqrt(1 + ratio**2), ratio / torch.sqrt(1 + ratio**2)
    alphas_cumprod = scheduler.alphas_cumprod[int(t)].double()
    return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


def ve(scheduler: Any, i: int, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(()), scheduler.sigmas[i]


def flow(scheduler: Any, i: int, t: Tensor) -> tuple[Tensor, Tensor]:
    return 1 - scheduler.sigmas[i].double(), scheduler.sigmas[i]


def exact_output(scheduler: Any, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The output of a network without error."""
    x0 = clean(x, alpha, sigma)
    noise = (x - alpha * x0) / sigma
    kind = scheduler.config.get("prediction_type", "flow")
    if "EDM" in type(scheduler).__name__:
        total = sigma.double() ** 2 + scheduler.config.sigma_data**2
        skip = scheduler.config.sigma_data**2 / total
        return (x0 - skip * x) / (sigma.double() * scheduler.config.sigma_data / total.sqrt())
    if kind == "v_prediction":  # of the normalized state
        size = torch.sqrt(alpha**2 + sigma**2)
        return (alpha * noise - sigma * x0) / size
    return {"epsilon": noise, "sample": x0, "flow": noise - x0}[kind]


def run_scheduler(
    scheduler: Any,
    steps: int,
    x: Tensor,
    variables: Callable[..., tuple[Tensor, Tensor]],
    draws: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    **options: Any,
) -> list[Tensor]:
    """Run a scheduler as its pipeline does, and return its states."""
    remaining = iter(draws)
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(remaining))
    scheduler.set_timesteps(steps)
    states = []
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = variables(scheduler, i, t)
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)  # some raise without this call
        output = exact_output(scheduler, x, alpha, sigma)
        x = scheduler.step(output, t, x, return_dict=False, **options)[0].double()
        states.append(x)
    return states


def run_sampler(
    equivalent: ours.SamplerSettings, config: Any, x: Tensor, draws: list[Tensor]
) -> list[Tensor]:
    sde = ours.forward_process(config).sde
    score = FunctionScore(lambda x, t: clean(x, sde.alpha(t), sde.sigma(t)), sde, DATA)
    remaining = iter(draws)
    sampler, times, denoise = equivalent
    states = [state for state, _ in iterate(score, x, times, sampler, lambda x: next(remaining))]
    return [*states, score.denoised(states[-1], times[-1])] if denoise else states


def difference(config, steps, variables, monkeypatch, sampler=None, start=None, **options):
    """The largest absolute difference of the samples, whose scale is 1."""
    scheduler = scheduler_of(config)
    equivalent = ours.sampler_settings(config, steps)
    sde = ours.forward_process(config).sde
    draws = list(torch.randn(3 * steps, 6, 3, dtype=torch.float64))
    x = torch.randn(6, 3, dtype=torch.float64) * sde.sigma(equivalent.times[0])
    scale = sde.alpha(equivalent.times[0]) if variables is ve else 1.0
    expected = run_scheduler(scheduler, steps, x / scale, variables, draws, monkeypatch, **options)[
        -1
    ]
    if sampler is not None:
        equivalent = equivalent._replace(sampler=sampler)
    found = run_sampler(equivalent, config, x, draws)[-1]
    if variables is ve and not equivalent.denoise:
        expected = expected * sde.alpha(equivalent.times[-1])
    return float((found - expected).abs().max())


def name(config: dict[str, Any]) -> str:
    kind = config["_class_name"].removesuffix("Scheduler")
    return "-".join([kind, *(f"{k}={v}"[:40] for k, v in config.items() if k != "_class_name")])


def settings(kind: str, **entries: Any) -> dict[str, Any]:
    unclipped = {"clip_sample": False} if kind in ("DDPM", "DDIM") else {}
    return {"_class_name": f"{kind}Scheduler"} | unclipped | entries


DPM = "DPMSolverMultistep"
SPACINGS = [{"timestep_spacing": each} for each in ("leading", "trailing", "linspace")]
TABLES = [
    *({"beta_schedule": each} for each in ("scaled_linear", "squaredcos_cap_v2", "sigmoid")),
    {"trained_betas": torch.linspace(1e-4, 0.3, 50).tolist(), "num_train_timesteps": 50},
    {"beta_end": 0.1, "num_train_timesteps": 200},
]
GRIDS = [{f"use_{each}_sigmas": True} for each in ("karras", "exponential", "beta")]
VP = [
    *(settings("DDPM", variance_type=v, **SPACINGS[0]) for v in ("fixed_small", "fixed_large")),
    settings("DDPM", variance_type="fixed_small_log", timestep_spacing="trailing"),
    settings("DDPM", timestep_spacing="linspace"),
    *(settings("DDPM", **each) for each in TABLES),
    *(settings("DDPM", prediction_type=each) for each in ("sample", "v_prediction")),
    *(settings("DDIM", **each) for each in SPACINGS[:2]),
    settings("DDIM", set_alpha_to_one=False, steps_offset=1),
    settings("DDIM", rescale_betas_zero_snr=True, prediction_type="v_prediction", **SPACINGS[1]),
    *(settings(DPM, **each) for each in SPACINGS),
    *(
        settings(DPM, solver_order=order, solver_type=kind, lower_order_final=False)
        for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "heun"))
    ),
    *(
        settings(DPM, algorithm_type="sde-dpmsolver++", solver_order=order, solver_type=kind)
        for order, kind in ((1, "midpoint"), (2, "midpoint"), (2, "heun"))
    ),
    settings(DPM, use_lu_lambdas=True),
    settings("DEISMultistep"),
    *(
        settings(
            "DEISMultistep", solver_order=k, use_exponential_sigmas=True, lower_order_final=False
        )
        for k in (1, 2, 3)
    ),
]
VE = [
    *(settings("EulerDiscrete", **each) for each in SPACINGS),
    *(settings("EulerAncestralDiscrete", **each) for each in SPACINGS),
    *(settings("HeunDiscrete", **each) for each in [*SPACINGS, *GRIDS[:2]]),
    settings("HeunDiscrete", prediction_type="v_prediction"),
    settings("EDMEuler"),
    settings("EDMEuler", sigma_schedule="exponential", sigma_data=1.0, rho=5.0),
    settings("EDMDPMSolverMultistep"),
    settings("EDMDPMSolverMultistep", solver_order=3, solver_type="heun", lower_order_final=False),
]
FLOW = [settings("FlowMatchEulerDiscrete"), settings("FlowMatchEulerDiscrete", shift=3.0)]
EQUIVALENT = [
    *((config, vp) for config in VP),
    *((config, ve) for config in VE),
    *((config, flow) for config in FLOW),
]


@pytest.mark.parametrize(("config", "variables"), EQUIVALENT, ids=[name(c) for c, _ in EQUIVALENT])
def test_samples_equal_those_of_schedulers(config, variables, monkeypatch):
    assert difference(config, 10, variables, monkeypatch) < 1e-5


@pytest.mark.parametrize("config", [settings(DPM, **each) for each in GRIDS], ids=name)
def test_samples_equal_those_of_schedulers_on_other_grids(config, monkeypatch):
    """With a larger rounding error: the steps in λ are differences of float32 logarithms."""
    assert difference(config, 20, vp, monkeypatch) < 5e-5


def test_ddim_with_noise(monkeypatch):
    """η is no setting of the scheduler but an argument of its step."""
    config, sampler = settings("DDIM"), Exponential(order=1, eta=DDIMNoise(0.7))
    assert difference(config, 10, vp, monkeypatch, sampler, eta=0.7) < 1e-5


# --- differences


def test_ddim_steps_to_other_times_than_its_next_timestep(monkeypatch):
    for spacing, steps in (("trailing", 17), ("linspace", 20)):
        config = settings("DDIM", timestep_spacing=spacing)
        found = difference(config, steps, vp, monkeypatch)
        assert 1e-3 < found < 0.1


def test_the_order_of_the_last_steps_is_lower_in_diffusers(monkeypatch):
    config = settings(DPM, solver_order=3)
    assert difference(config, 10, vp, monkeypatch) > 1e-3
    assert difference(config, 15, vp, monkeypatch) < 1e-5
    constant = difference(config | {"lower_order_final": False}, 10, vp, monkeypatch)
    assert constant < 1e-5


def patched(monkeypatch, kind: str, method: str, text: str, other: str) -> None:
    """Change a line in the source of a scheduler."""
    scheduler = getattr(diffusers, kind)
    module = importlib.import_module(scheduler.__module__)
    source = textwrap.dedent(inspect.getsource(getattr(scheduler, method)))
    assert source.count(text) == 1
    scope = dict(vars(module))
    exec(source.replace(text, other), scope)
    monkeypatch.setattr(scheduler, method, scope[method])


def test_the_stochastic_third_order_has_a_wrong_sign_in_diffusers(monkeypatch):
    """The weight of the second derivative is (1 − e^{−c} − c)/c² + ½, c = 2h; diffusers has − ½."""
    config = settings(
        DPM, solver_order=3, algorithm_type="sde-dpmsolver++", solver_type="heun", **SPACINGS[1]
    )
    assert difference(config, 20, vp, monkeypatch) > 0.01
    patched(
        monkeypatch,
        config["_class_name"],
        "multistep_dpm_solver_third_order_update",
        "(2.0 * h) ** 2 - 0.5)",
        "(2.0 * h) ** 2 + 0.5)",
    )
    assert difference(config, 20, vp, monkeypatch) < 1e-5


def test_unipc_is_approximately_equal(monkeypatch):
    for order, bound in ((1, 3e-3), (2, 1e-2)):
        config = settings("UniPCMultistep", solver_order=order)
        assert 1e-4 < difference(config, 20, vp, monkeypatch) < bound


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("predict_x0", [True, False])
def test_unipc_with_exact_weights_is_equal(order, predict_x0, monkeypatch):
    """UniPC's predictor of order 2 and its first corrections use midpoint weights.

    Without these two branches of its source the weights are solved for exactly. With order 3 the
    last two steps have a lower order and are not compared.
    """
    for step, shortcut in (("uni_p", "if order == 2:"), ("uni_c", "if order == 1:")):
        method = f"multistep_{step}_bh_update"
        patched(monkeypatch, "UniPCMultistepScheduler", method, shortcut, "if False:")
    config = settings("UniPCMultistep", solver_order=order, predict_x0=predict_x0)
    steps, compared = 12, 12 - max(order - 1, 1)
    x = torch.randn(6, 3, dtype=torch.float64)
    expected = run_scheduler(scheduler_of(config), steps, x, vp, [], monkeypatch)[:compared]
    found = run_sampler(ours.sampler_settings(config, steps), config, x, [])[:compared]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=0, atol=5e-5)


# --- settings


@pytest.mark.parametrize("kind", DEFAULTS)
def test_every_sampler_runs_with_default_settings(kind):
    config = {"_class_name": kind}
    sampler, times, denoise = ours.sampler_settings(config, 100)
    sde = ours.forward_process(config).sde
    score = FunctionScore(lambda x, t: clean(x, sde.alpha(t), sde.sigma(t)), sde, DATA)
    x = sample(score, (200, 3), sampler, times=times, denoise=denoise)
    assert 0.3 < float(x.double().std() / MEANS.std()) < 2.0


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_equal_those_of_diffusers(kind):
    known = inspect.signature(getattr(diffusers, kind)).parameters
    for key, value in DEFAULTS[kind].items():
        if key in known:
            assert known[key].default == value, key


@pytest.mark.parametrize("config", [c for c, _ in EQUIVALENT], ids=name)
def test_tables_equal_those_of_diffusers(config):
    scheduler, process = scheduler_of(config), ours.forward_process(config)
    if hasattr(scheduler, "alphas_cumprod"):
        found = process.sde.alphas_cumprod.float()
        torch.testing.assert_close(found[:-1], scheduler.alphas_cumprod[:-1], rtol=2e-5, atol=0)
        torch.testing.assert_close(found[-1:], scheduler.alphas_cumprod[-1:], rtol=2e-5, atol=1e-6)
    assert repr(ours.forward_process(scheduler)) == repr(process)
