"""Networks and folders of diffusers: loading, and samples equal to those of their pipelines."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import (
    DDPM,
    EDMSDE,
    NCSN,
    VESDE,
    VPSDE,
    CosineSDE,
    ExactTrace,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
)
from scoresde._core.counter_rng import CounterRNG
from scoresde.interop import diffusers as ours
from scoresde.likelihood import discrete_bound
from scoresde.samplers import iterate
from scoresde.scores.labels import by_index, by_sigma
from scoresde.scores.predictions import DATA, FLOW, NOISE, SCORE, VELOCITY, edm

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # raised in diffusers

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def unet(**changes: Any) -> Any:
    return diffusers.UNet2DModel(**UNET | changes).eval().requires_grad_(False)


def scheduler(kind: str, **entries: Any) -> Any:
    return getattr(diffusers, f"{kind}Scheduler")(**entries)


def relative(out: Tensor, expected: Tensor) -> float:
    return float((out - expected).abs().max() / expected.abs().max())


# --- samples of a network


def run_pipeline(
    reference: Any, network: nn.Module, x: Tensor, steps: int, draws: list[Tensor], patch: Any
) -> Tensor:
    """The loop of diffusers' pipelines."""
    remaining = iter(draws)
    module = importlib.import_module(type(reference).__module__)
    if hasattr(module, "randn_tensor"):
        patch.setattr(module, "randn_tensor", lambda *a, **k: next(remaining))
    reference.set_timesteps(steps)
    for t in reference.timesteps:
        scaled = reference.scale_model_input(x, t)
        output = network(scaled, t).sample
        x = reference.step(output, t, x).prev_sample
    return x


def samples(
    model: ScoreModel, settings: ours.SamplerSettings, x: Tensor, draws: list[Tensor]
) -> Tensor:
    remaining = iter(draws)
    states = [
        state
        for state, _ in iterate(
            model, x, settings.times, settings.sampler, lambda x: next(remaining)
        )
    ]
    return model.denoised(states[-1], settings.times[-1]) if settings.denoise else states[-1]


@pytest.mark.parametrize(
    ("kind", "entries"),
    [
        ("DDPM", {"clip_sample": False}),
        ("DDPM", {"clip_sample": False, "variance_type": "fixed_large"}),
        ("DDIM", {"clip_sample": False}),
        ("DDIM", {"clip_sample": False, "prediction_type": "v_prediction"}),
        ("DPMSolverMultistep", {}),
        ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
        (
            "DPMSolverMultistep",
            {"solver_order": 3, "solver_type": "heun", "lower_order_final": False},
        ),
        ("DEISMultistep", {}),
        ("EulerDiscrete", {"timestep_spacing": "trailing"}),
        ("HeunDiscrete", {"timestep_spacing": "trailing"}),
        ("EDMEuler", {}),
    ],
)
def test_samples_equal_those_of_the_scheduler(kind, entries, monkeypatch):
    network, reference, steps = unet(), scheduler(kind, **entries), 10
    model, settings = ours.wrap(network, reference), ours.sampler_settings(reference, steps)
    draws = list(torch.randn(2 * steps, 3, 2, 8, 8))
    start = model.sde.sigma(settings.times[0]) * torch.randn(3, 2, 8, 8).double()
    in_ve = kind in ("EulerDiscrete", "HeunDiscrete")
    x = (start / model.sde.alpha(settings.times[0]) if in_ve else start).float()
    expected = run_pipeline(reference, network, x, steps, draws, monkeypatch)
    assert relative(samples(model, settings, start.float(), draws), expected) < 1e-4


def test_samples_equal_those_of_the_score_sde_ve_pipeline(monkeypatch):
    """Predictor-corrector steps of the official sampler, without the last noise."""
    network, steps = unet(time_embedding_type="fourier"), 10
    reference = scheduler("ScoreSdeVe", sigma_max=20.0, sampling_eps=1e-6, correct_steps=2)
    model, settings = ours.wrap(network, reference), ours.sampler_settings(reference, steps)
    assert (model.prediction, model.label) == (SCORE, by_sigma)
    draws = list(torch.randn(3 * steps, 3, 2, 8, 8))
    start = 20 * torch.randn(3, 2, 8, 8)
    remaining = iter(draws)
    module = importlib.import_module(type(reference).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(remaining))
    reference.set_timesteps(steps)
    reference.set_sigmas(steps)
    x = start
    for i, t in enumerate(reference.timesteps):
        sigma = reference.sigmas[i] * torch.ones(3)
        for _ in range(2):
            x = reference.step_correct(network(x, sigma).sample, x).prev_sample
        step = reference.step_pred(network(x, sigma).sample, t, x)
        x, mean = step.prev_sample, step.prev_sample_mean
    assert relative(samples(model, settings, start, draws), mean) < 1e-4


# --- networks


def test_a_wrapped_network_takes_timesteps():
    network, reference = unet(), scheduler("DDPM")
    model = ours.wrap(network, reference)
    assert (model.prediction, model.label) == (NOISE, by_index)
    i = torch.tensor([0, 500, 999])
    x = torch.randn(3, 2, 8, 8)
    assert torch.equal(model.noise(x, model.sde.times[i]), network(x, i.float()).sample)
    x0, noise = torch.randn(2, 3, 2, 8, 8)
    noised = model.sde.perturb(x0, model.sde.times[i].float(), noise)
    torch.testing.assert_close(noised, reference.add_noise(x0, noise, i), rtol=0, atol=5e-6)


def test_classes_are_a_condition():
    network = unet(num_class_embeds=5)
    model = ours.wrap(network, scheduler("DDPM"))
    x, classes = torch.randn(3, 2, 8, 8), torch.tensor([0, 3, 1])
    label = model.label(model.sde, model.sde.times[:3])
    expected = network(x, label, class_labels=classes).sample
    out = model.given(class_labels=classes).output(x, model.sde.times[:3])
    torch.testing.assert_close(out, expected)
    one = model.given(class_labels=3).output(x[1:2], model.sde.times[1])
    torch.testing.assert_close(one, expected[1:2], rtol=1e-4, atol=1e-5)


def test_channels_of_learned_variances_are_dropped():
    network = unet(out_channels=4)
    model = ours.wrap(network, scheduler("DDPM", variance_type="learned_range"))
    x = torch.randn(2, 2, 8, 8)
    out = model.output(x, model.sde.times[7])
    assert torch.equal(out, network(x, torch.tensor([7.0, 7.0])).sample[:, :2])
    with pytest.raises(ValueError, match="variance_type"):
        ours.sampler_settings(scheduler("DDPM", variance_type="learned_range"), 10)


def test_learned_variances_are_those_of_the_scheduler():
    network, reference = unet(out_channels=4), scheduler("DDPM", variance_type="learned_range")
    model = ours.wrap(network, reference)
    x, sde = torch.randn(2, 2, 8, 8), model.sde
    for i in (1, 500, 999):
        second = network(x, torch.tensor([float(i)] * 2)).sample[:, 2:]
        v = ours.learned_variance(model)(x, sde.times[i])
        std = sde.transition(sde.times[i - 1], sde.times[i])[1]
        low = std * sde.sigma(sde.times[i - 1]) / sde.sigma(sde.times[i])
        found = 2 * (v * std.log() + (1 - v) * low.log())
        expected = reference._get_variance(i, predicted_variance=second)
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-5)
    levels = torch.randint(8, (2, 2, 8, 8))
    setting = {"levels": 8, "scale": 2.0, "shift": -1.0, "times": sde.times[::100]}
    bound = discrete_bound(model, levels, variance=ours.learned_variance(model), **setting)
    assert bound.terms.isfinite().all()
    narrow = ours.learned_variance(ours.wrap(unet(), reference))
    with pytest.raises(ValueError, match=r"^network: expected"):
        discrete_bound(model, levels, variance=narrow, **setting)
    with pytest.raises(TypeError, match=r"^model: expected a network of diffusers"):
        ours.learned_variance(ScoreModel(nn.Identity(), sde))


def test_exact_traces_of_networks_with_attention():
    """The trace of autograd's Jacobian, although attention has no batched gradients."""
    model = ours.wrap(unet(sample_size=2), scheduler("DDPM"))
    z = torch.randn(2, 8)

    def field(z: Tensor) -> Tensor:
        return model(z.reshape(-1, 2, 2, 2), 0.5).flatten(1)

    _, found = ExactTrace()(field, z, CounterRNG.draw(2, torch.Generator().manual_seed(0)))
    jacobian = [torch.autograd.functional.jacobian(field, row[None])[0, :, 0] for row in z]
    expected = torch.stack([each.trace() for each in jacobian])
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-4, atol=1e-4)
    result = log_likelihood(model, z.reshape(2, 2, 2, 2), tolerance=0.1, t_min=0.9)
    assert result.log_prob.isfinite().all()


# --- folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a pipeline, written by diffusers."""
    torch.manual_seed(1)
    pipeline = diffusers.DDPMPipeline(unet(), scheduler("DDPM", beta_schedule="squaredcos_cap_v2"))
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_a_folder_of_a_pipeline(folder):
    before = torch.get_rng_state()
    model = ours.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(model.sde) == repr(DDPM.cosine(1000))
    assert not any(module.training for module in model.modules())
    reference = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
    x, i = torch.randn(3, 2, 8, 8), torch.tensor([0, 500, 999])
    assert torch.equal(model.noise(x, model.sde.times[i]), reference(x, i.float()).sample)
    own = VPSDE()
    assert ours.load(str(folder), sde=own).sde is own


def test_flat_folders_half_precision_and_pickles(folder, tmp_path):
    original = ours.load(folder)
    flat = tmp_path / "flat"
    network = diffusers.UNet2DModel.from_pretrained(folder / "unet")
    network.save_pretrained(flat, safe_serialization=False)
    shutil.copy(folder / "scheduler/scheduler_config.json", flat)
    assert (flat / "diffusion_pytorch_model.bin").is_file()
    for name, tensor in ours.load(flat).state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]), name
    network.half().save_pretrained(folder / "unet", variant="fp16")
    rounded = ours.load(folder, variant="fp16")
    for name, tensor in rounded.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, original.network.state_dict()[name].half().float()), name


def test_old_names_of_attention(folder):
    from safetensors.torch import load_file, save_file

    original, file = ours.load(folder), folder / "unet/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, former in old.items():
        tensors = {name.replace(f".{new}.", f".{former}."): t for name, t in tensors.items()}
    assert any("query" in name for name in tensors)
    save_file(tensors, file)
    again = ours.load(folder)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name]), name


def test_a_snapshot_in_the_cache_of_hugging_face(folder, tmp_path):
    """Its files are links into ``blobs``."""
    snapshot, blobs = tmp_path / "models/snapshots/abc", tmp_path / "models/blobs"
    blobs.mkdir(parents=True)
    for i, file in enumerate(each for each in folder.rglob("*") if each.is_file()):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / str(i))
        link.symlink_to(blobs / str(i))
    assert repr(ours.load(snapshot).sde) == repr(DDPM.cosine(1000))


def test_a_loaded_model_can_be_saved(folder, tmp_path):
    model = ours.load(folder)
    model.save(tmp_path / "model.safetensors")
    again = ScoreModel.load(tmp_path / "model.safetensors", network=ours.Network(unet()))
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(again(x, 0.3), model(x, 0.3))


def test_only_load_requires_diffusers(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert repr(ours.forward_process(config).sde) == repr(DDPM.cosine(1000))
    assert len(ours.sampler_settings(config, 10).times) == 10
    with pytest.raises(ImportError, match="pip install diffusers"):
        ours.load(folder)


# --- from an SDE to a scheduler


@pytest.mark.parametrize(
    "sde",
    [
        VPSDE(),
        VPSDE(0.5, 5.0, T=2.0),
        CosineSDE(),
        DDPM.linear(N=300),
        DDPM.cosine(100),
        VESDE(),
        VESDE(0.02, 100.0),
        NCSN.geometric(N=50),
        EDMSDE(0.01, 50.0),
        RectifiedFlow(),
    ],
    ids=str,
)
def test_an_sde_survives_the_round_trip(sde):
    """The same α and σ at the same t/T, compared with diffusers' table as well."""
    config = json.loads(json.dumps(ours.scheduler_config(sde)))
    reference = getattr(diffusers, config["_class_name"]).from_config(config)
    again = ours.forward_process(reference).sde
    fraction = torch.arange(1, 101, dtype=torch.float64) / 100
    t, u = sde.T * fraction, again.T * fraction
    if config["_class_name"].startswith("FlowMatch"):
        t = u = 0.999 * fraction
    torch.testing.assert_close(sde.alpha(t), again.alpha(u), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sde.sigma(t), again.sigma(u), rtol=1e-6, atol=0)
    if hasattr(reference, "alphas_cumprod"):
        N = len(reference.alphas_cumprod)
        times = sde.T * (torch.arange(N).double() + 1) / N
        expected = reference.alphas_cumprod.double()
        torch.testing.assert_close(sde.alpha(times) ** 2, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("prediction", [NOISE, DATA, VELOCITY])
def test_the_prediction_is_part_of_the_configuration(prediction):
    assert ours.forward_process(ours.scheduler_config(VPSDE(), prediction)).prediction == prediction


def test_predictions_of_schedulers_without_a_table():
    assert ours.forward_process({"_class_name": "EDMEulerScheduler"}).prediction == edm(0.5)
    assert (
        ours.forward_process({"_class_name": "FlowMatchEulerDiscreteScheduler"}).prediction == FLOW
    )


def test_sdes_without_a_scheduler():
    with pytest.raises(ValueError, match=r"^sde: .*SubVPSDE"):
        ours.scheduler_config(SubVPSDE())
    with pytest.raises(ValueError, match=r"^prediction: .*NOISE, DATA or VELOCITY"):
        ours.scheduler_config(VPSDE(), SCORE)
    with pytest.raises(TypeError, match=r"^sde: "):
        ours.scheduler_config("vp")


# --- mistakes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
        ({}, "_class_name"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}, "beta_schedule"),
        ({"_class_name": "DDPMScheduler", "beta_start": -1.0}, "beta_start"),
        ({"_class_name": "DDPMScheduler", "trained_betas": "many"}, "trained_betas"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 1}, "num_train_timesteps"),
        ({"_class_name": "DDPMScheduler", "prediction_type": "flow_prediction"}, "prediction_type"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "prediction"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 90.0}, "sigma_min"),
    ],
)
def test_unsupported_forward_processes_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ours.forward_process(config)


def test_unsupported_samplers_are_refused():
    with pytest.raises(ValueError, match=r"expected one of DDPMScheduler, .*PNDM"):
        ours.sampler_settings(scheduler("PNDM"), 10)
    assert repr(ours.forward_process(scheduler("PNDM")).sde) == repr(DDPM.linear())
    with pytest.raises(ValueError, match=r"^steps: .*at most 1000"):
        ours.sampler_settings(scheduler("DDIM"), 1001)
    with pytest.raises(ValueError, match="invert_sigmas"):
        ours.sampler_settings(scheduler("FlowMatchEulerDiscrete", invert_sigmas=True), 10)
    with pytest.raises(TypeError, match=r"^scheduler: .*'ddpm'"):
        ours.sampler_settings("ddpm", 10)
    with pytest.raises(TypeError, match=r"^unet: .*pipeline.unet"):
        ours.wrap("unet", scheduler("DDPM"))
