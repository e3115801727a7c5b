"""Checkpoints of score_sde_pytorch: outputs of the official code, and files that are refused."""

import inspect
import itertools
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from scoresde import (
    NCSN,
    VESDE,
    VPSDE,
    EulerMaruyama,
    Hutchinson,
    Langevin,
    ReverseDiffusion,
    SciPy,
    ScoreModel,
    SubVPSDE,
    log_likelihood,
    transport,
)
from scoresde.interop import score_sde
from scoresde.networks import DDPMUNet, NCSNpp, NCSNv2
from scoresde.scores.labels import by_index, by_sigma
from scoresde.scores.predictions import NOISE, SCORE
from scoresde.traces.hutchinson import ProbeDistribution
from scoresde.training.losses import LikelihoodWeighting, noise_errors

SUBVP, VE, VP, DDPM = (
    "subvp_cifar10_ncsnpp_continuous",
    "ve_cifar10_ncsnpp_continuous",
    "vp_cifar10_ddpmpp_continuous",
    "vp_ddpm_cifar10",
)
VP_TRAINING = {"training.sde": "vpsde", "training.continuous": True}


def relative(out, expected):
    return float((out - expected).abs().max() / expected.abs().max())


def load(path, config=None, **options):
    return score_sde.load(path, config, **options).requires_grad_(False)


# --- outputs of the official code
#
# Bounds are about ten times what one float32 rounding of the weights changes in the reference.


class Case:
    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.path = folder / "checkpoint_1.pth"
        self.config = json.loads((folder / "config.json").read_text())["flat"]
        self.model = load(self.path, self.config)
        arrays = np.load(folder / "expected.npz")
        self.arrays = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays}

    def __getitem__(self, name):
        return self.arrays[name]

    @property
    def centered(self):
        return self.config["data.centered"]

    @property
    def data(self):
        return self["x_centered" if self.centered else "x_unit"]

    def to_unit(self, x):
        return (x + 1) / 2 if self.centered else x


@pytest.fixture(scope="module")
def cases(golden):
    return {name: Case(golden / name) for name in (SUBVP, VE, VP, DDPM)}


@pytest.fixture(params=[SUBVP, VE, VP, DDPM])
def case(request, cases):
    return cases[request.param]


@pytest.fixture(params=[SUBVP, VE, VP])
def continuous(request, cases):
    return cases[request.param]


def test_official_processes(cases):
    described = {
        name: (repr(case.model.sde), repr(case.model.label), case.model.prediction)
        for name, case in cases.items()
    }
    assert described == {
        SUBVP: (repr(SubVPSDE()), "TimeLabel(scale=999.0)", NOISE),
        VE: (repr(VESDE()), repr(by_sigma), SCORE),
        VP: (repr(VPSDE()), "TimeLabel(scale=999.0)", NOISE),
        DDPM: (repr(VPSDE().discretize(1000)), repr(by_index), NOISE),
    }
    assert not any(case.model.training for case in cases.values())


def test_official_names_dtypes_and_order(case):
    network = case.model.network
    weights = score_sde._weights(score_sde._read_checkpoint(case.path))
    arguments = {k: getattr(network, k) for k in inspect.signature(type(network)).parameters}
    fresh = type(network)(**arguments).state_dict()
    assert list(fresh) == list(weights)
    for name, tensor in weights.items():
        assert fresh[name].shape == tensor.shape, name
        assert fresh[name].dtype == tensor.dtype, name
    torch.testing.assert_close(fresh["sigmas"], weights["sigmas"], rtol=1e-12, atol=0)


def test_official_outputs(case):
    for suffix in "abc":
        if f"net_{suffix}" in case.arrays:
            out = case.model.network(case[f"x_{suffix}"], case[f"label_{suffix}"])
            assert relative(out, case[f"net_{suffix}"]) < 1e-5, suffix
    out = case.model.network(case.data, case["net_clean_label"])
    assert out.dtype == torch.float32
    assert relative(out, case["net_clean"]) < 1e-5
    raw = load(case.path, case.config, ema=False).network(case["x_a"], case["label_a"])
    assert relative(raw, case["net_a_rawweights"]) < 1e-5
    assert relative(raw, case["net_a"]) > 1e-2


def test_official_scores(continuous):
    # The official σ(t) has lost digits in float32 where t is small: in b by 2.4e-4, in c by 1.2 %.
    for suffix, bound in {"a": 1e-5, "b": 5e-4, "c": 2e-2}.items():
        score = continuous.model(continuous[f"x_{suffix}"], continuous[f"t_{suffix}"])
        assert relative(score, continuous[f"score_{suffix}"]) < bound, suffix


def test_official_small_times_in_float64(continuous):
    # With the official σ and its rounding error, only the networks are compared.
    model, sigma = continuous.model, continuous.model.sde.sigma
    for suffix in "bc":
        x, t = continuous[f"x_{suffix}"], continuous[f"t_{suffix}"]
        rounded = sigma(t.double()) / continuous[f"std_{suffix}"] if continuous.centered else 1.0
        score = model(x, t) * torch.as_tensor(rounded).reshape(-1, 1, 1, 1)
        assert relative(score, continuous[f"score_{suffix}"]) < 1e-5, suffix


def table_time(t, n=1000):
    """The time at which the label here is that of the official time ``t``."""
    return (t.double() * (n - 1) + 1) / n


def test_official_table(cases):
    case = cases[DDPM]
    model, sde = case.model, case.model.sde
    for suffix, bound in {"a": 1e-5, "b": 3e-4}.items():  # 1 − ᾱ has lost digits in float32
        x, t = case[f"x_{suffix}"], case[f"t_{suffix}"]
        std = (1 - sde.alphas_cumprod[(t * 999).long()]).sqrt()
        noise = model.output(x, table_time(t))
        score = -noise / std.float().reshape(-1, 1, 1, 1)
        assert relative(score, case[f"score_{suffix}"]) < bound
        # At these table times σ is the same; this network hardly depends on the label.
        assert relative(model(x, t), case[f"score_{suffix}"]) < bound
    labels = case["int_labels"]
    clean = model.output(case.data, sde.times[labels])
    assert relative(clean, case["net_clean"]) < 1e-5


def test_official_sampling_steps_of_ddpm(cases):
    case = cases[DDPM]
    sde = case.model.sde
    torch.testing.assert_close(sde.betas.float(), case["grid_beta_ladder"], rtol=1e-5, atol=0)
    for x, t, mean in zip(case["full_x_in"], case["full_t"], case["full_x_mean"], strict=True):
        i = int(t * 999)
        beta, alpha_bar = sde.betas[i], sde.alphas_cumprod[i]
        noise = case.model.output(x, float(table_time(t)))
        step = (x - float(beta / (1 - alpha_bar).sqrt()) * noise) / float((1 - beta).sqrt())
        assert relative(step, mean) < 1e-5


def test_official_losses(case):
    model, x0, noise = case.model, case.data, case["loss_noise"]
    factor = 1 / x0[0].numel() if case.config["training.reduce_mean"] else 0.5
    if "loss_labels" in case.arrays:
        errors = noise_errors(model, x0, model.sde.times[case["loss_labels"]], noise)
        torch.testing.assert_close(factor * errors.mean(), case["loss"], rtol=1e-5, atol=0)
        return
    t = case["loss_u"].double() * (1 - 1e-5) + 1e-5
    errors = noise_errors(model, x0, t, noise)
    torch.testing.assert_close(factor * errors.mean(), case["loss"], rtol=1e-4, atol=0)
    weighted = (errors.double() * LikelihoodWeighting()(model.sde, t)).mean().float()
    torch.testing.assert_close(factor * weighted, case["loss_lw"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [VE, VP, pytest.param(SUBVP, marks=pytest.mark.slow)])
def test_official_probability_flow(cases, name):
    # The official integrator in the official variables, with score and SDE of the library.
    continuous = cases[name]
    model, z = continuous.model, continuous["ode_z"]
    flow = model.sde.reverse(model, eta=0.0)

    def drift(t, y):
        return flow.drift(torch.from_numpy(y).float().reshape(z.shape), t).double().numpy().ravel()

    ends = (1.0, 1e-3 if continuous.centered else 1e-5)
    start = z.double().numpy().ravel()
    solution = solve_ivp(drift, ends, start, method="RK45", rtol=1e-5, atol=1e-5)
    end = torch.from_numpy(solution.y[:, -1]).float().reshape(z.shape)
    assert relative(continuous.to_unit(end), continuous["ode_sample"]) < 1e-4
    assert abs(solution.nfev - int(continuous["ode_nfe"])) < 0.1 * solution.nfev


@pytest.mark.slow
def test_official_samples_by_transport(continuous):
    # The error of the reference is 6e-4 (VP), 1e-5 (VE) and 3e-4 (sub-VP), by comparison with a
    # tolerance a hundred times smaller.
    end = transport(
        continuous.model,
        continuous["ode_z"].double(),
        1.0,
        1e-3 if continuous.centered else 1e-5,
        SciPy("RK45", rtol=1e-5, atol=1e-5, coupled=True),
    )
    bound = 2e-3 if continuous.centered else 1e-4
    assert relative(continuous.to_unit(end).float(), continuous["ode_sample"]) < bound


class Recorded(ProbeDistribution):
    """The same probes in every call."""

    def __init__(self, probes):
        self.probes = probes.double().flatten(1).unsqueeze(1)

    def draw(self, rng, k, d):
        return self.probes


@pytest.mark.slow
def test_official_likelihoods(continuous):
    # About 1e-4 relative. The reference changes by up to 4e-4 (σ at small times) and, for VE, 1e-3
    # bits per dimension when weights are rounded; its tolerance of 1e-5 has an error of that size.
    model = continuous.model
    result = log_likelihood(
        model.requires_grad_(False),
        continuous["lik_data"].double(),
        trace=Hutchinson(1, Recorded(continuous["lik_probe"])),
        solver=SciPy("RK45", rtol=1e-5, atol=1e-5, coupled=True),
        t_min=1e-5,
    )
    bits = result.bits_per_dim(levels=256, scale=2.0 if continuous.centered else 1.0)
    bound = 1e-4 if continuous.centered else 5e-4
    torch.testing.assert_close(bits.float(), continuous["lik_bpd"], rtol=bound, atol=0)
    log_prior = model.sde.prior((3, 8, 8)).log_prob(result.latent.float())
    torch.testing.assert_close(log_prior, continuous["lik_prior_logp"], rtol=2e-4, atol=0)
    assert relative(result.latent.float(), continuous["lik_z"]) < (
        1e-2 if continuous.centered else 5e-2
    )


def recorded_noise(draws):
    """A noise function that returns recorded draws in order."""
    remaining = iter(draws)
    return lambda x: next(remaining).to(x.dtype)


@pytest.mark.parametrize("name", [SUBVP, VP])
def test_official_euler_maruyama(cases, name):
    case = cases[name]
    times, draws = case["pc_times"].double(), case["pc_draws"]
    noise, sampler = recorded_noise(draws[1:]), EulerMaruyama()
    x = draws[0]
    state = sampler.init(case.model, x, times)
    for k, t in enumerate(times):  # the official steps have size 1/N on every grid
        assert relative(x, case["pc_trace_in"][k]) < 1e-5
        last, before = x, state
        x, state = sampler.step(case.model, x, t, t - 1 / len(times), state, noise)
        assert relative(x, case["pc_trace"][k]) < 1e-5
    assert relative(case.to_unit(x), case["pc_sample_nodenoise"]) < 1e-5
    zero = recorded_noise([torch.zeros_like(x)])
    mean, _ = sampler.step(case.model, last, t, t - 1 / len(times), before, zero)
    assert relative(case.to_unit(mean), case["pc_sample"]) < 1e-5


def test_official_predictor_corrector(cases):
    case = cases[VE]
    times, draws = case["pc_times"].double(), case["pc_draws"]
    noise, model = recorded_noise(draws[1:]), case.model
    corrector, predictor = Langevin(0.16, published=True), ReverseDiffusion()
    x = draws[0] * model.sde.sigma_max
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        x, _ = corrector.step(model, x, t, s, None, noise)
        assert relative(x, case["pc_trace_in"][k]) < 3e-5
        x, _ = predictor.step(
            model, x, t, s, None, noise
        )  # the official table times differ from t by 1e-5
        assert relative(x, case["pc_trace"][k]) < 3e-5
    x, _ = corrector.step(model, x, t=times[-1], s=times[-1], state=None, noise=noise)
    assert relative(x, case["pc_trace_in"][-1]) < 3e-5
    mean = model.denoised(x, times[-1])
    assert relative(mean, case["pc_sample"]) < 3e-5
    last = mean + float(model.sde.sigma_min) * draws[-1]
    assert relative(last, case["pc_trace"][-1]) < 3e-5
    assert relative(last, case["pc_sample_nodenoise"]) < 3e-5


def test_official_denoising(continuous):
    """The mean of a reverse-diffusion step with N = 1000 at the end of the flow."""
    model, N, t = continuous.model, 1000, 1e-3 if continuous.centered else 1e-5
    x = continuous["ode_sample"]
    if continuous.name == VE:  # the step is from sigma_min to σ = 0
        mean = x + model.sde.sigma_min**2 * model(x, t)
        assert relative(model.denoised(x, t), continuous["ode_sample_denoised"]) < 1e-5
    else:
        x = 2 * x - 1
        f, g2 = (float(rate) / N for rate in model.sde.rates(t))
        if continuous.name == VP:
            beta = float(VPSDE().discretize(N).betas[int(t * (N - 1))])
            f, g2 = math.sqrt(1 - beta) - 1, beta
        mean = x - f * x + g2 * model(x, t)
    assert relative(continuous.to_unit(mean), continuous["ode_sample_denoised"]) < 1e-5


@pytest.mark.parametrize("name", [SUBVP, VE, VP, DDPM])
def test_official_architectures_are_inferred(cases, name):
    case = cases[name]
    training = {key: case.config[key] for key in ("training.sde", "training.continuous")}
    inferred = load(case.path, None if name == VE else training)
    assert repr(inferred.network) == repr(case.model.network)
    assert repr(inferred.sde) == repr(case.model.sde)
    assert torch.equal(inferred.output(case.data, 0.5), case.model.output(case.data, 0.5))


def test_old_numpy(golden, cases):
    old = load(golden / VE / "checkpoint_1_oldnumpy.pth")
    for name, tensor in cases[VE].model.state_dict().items():
        assert torch.equal(old.state_dict()[name], tensor)


# --- files written here


def write(path, network, **changes):
    """Write a network in the official layout."""
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    average = [p.detach() + 1 for p in network.parameters() if p.requires_grad]
    ema = {"decay": 0.999, "num_updates": 5, "shadow_params": average}
    rate = np.float64(2e-4)
    content = {"model": state, "ema": ema, "step": 5, "optimizer": {"lr": rate}} | changes
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def tiny(**options):
    return NCSNpp(2, 8, (1, 2), 1, (1,), **options).eval()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth"


def test_averages_by_default(path):
    network = tiny(fourier_scale=16.0, scale_by_sigma=True, centered=False)
    write(path, network)
    averaged, raw = load(path), load(path, ema=False)
    for (name, ours), theirs, trained in zip(
        averaged.network.named_parameters(),
        raw.network.parameters(),
        network.parameters(),
        strict=True,
    ):
        assert torch.equal(theirs, trained), name
        assert torch.equal(ours, trained + (1 if trained.requires_grad else 0)), name
    assert torch.equal(averaged.network.all_modules[0].W, network.all_modules[0].W)


def test_loading_draws_nothing(path):
    write(path, tiny())
    before = torch.get_rng_state()
    load(path, VP_TRAINING)
    assert torch.equal(torch.get_rng_state(), before)


def test_nested_configuration_and_own_diffusion(path):
    write(path, tiny())
    nested = {"training": {"sde": "vpsde", "continuous": True}, "model": {"beta_max": 10.0}}
    assert repr(load(path, nested).sde) == repr(VPSDE(beta_max=10.0))
    own = VPSDE(t_min=1e-3)
    assert load(path, nested, sde=own).sde is own


def test_a_loaded_model_can_be_saved(path, tmp_path):
    write(path, tiny())
    model = load(path, VP_TRAINING)
    model.save(tmp_path / "model.safetensors")
    again = ScoreModel.load(tmp_path / "model.safetensors")
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(again(x, 0.3), model(x, 0.3))


def test_labels_of_ncsn_count_from_the_largest_noise_level(path):
    network = tiny(scale_by_sigma=True, centered=False)
    write(path, network)
    model = load(path, {"training.sde": "vesde", "training.continuous": False}, ema=False)
    assert repr(model.sde) == repr(NCSN.geometric(0.01, 50.0, 1000))
    x, i = torch.rand(3, 2, 8, 8), torch.tensor([0, 500, 999])
    score = model(x, model.sde.times[999 - i])
    torch.testing.assert_close(score, network(x, i))
    # Between table times the label is the nearest, round((1 − t)(N − 1)) on the official times.
    label = model.label(model.sde, torch.tensor([0.9994, 0.9996], dtype=torch.float64))
    assert label.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(("design", "stages"), [(64, 4), (128, 5), (256, 6)])
def test_refinenets(path, design, stages):
    network = NCSNv2(2, 4, design, scales=10).eval()
    write(path, network)
    model = load(path, ema=False)
    assert model.network.design == design
    assert len(model.sde.sigmas) == 10
    x = torch.rand(1, 2, 16, 16)
    assert torch.equal(model(x, model.sde.times[:1]), network(x, torch.tensor([9])))
    named = {
        "model.name": f"ncsnv2_{design}",
        "data.channels": 2,
        "model.nf": 4,
        "training.sde": "vesde",
        "training.continuous": False,
    }
    assert repr(load(path, named).network) == repr(model.network)


SHAPES = [
    {"multipliers": (1,), "blocks": 1, "attention": ()},
    {"multipliers": (2, 1), "blocks": 1, "attention": (0,)},
    {"multipliers": (1, 2, 2), "blocks": 2, "attention": (0, 2)},
]
KINDS = [
    {"progressive_input": a, "progressive": b, "combine": c}
    for a, b, c in itertools.product(
        ["none", "input_skip", "residual"], ["none", "output_skip", "residual"], ["sum", "cat"]
    )
    if c == "sum" or a == "input_skip"
]


@pytest.mark.parametrize("shape", SHAPES, ids=["one", "two", "three"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_options_are_inferred(path, shape, kind):
    single = len(shape["multipliers"]) == 1
    network = NCSNpp(2, 8, **shape, **kind).eval()
    write(path, network)
    filters = {"model.fir": True}  # a filter without a convolution leaves no trace in the tensors
    model = load(path, VP_TRAINING | filters, ema=False)
    for name, value in (shape | ({} if single else kind)).items():
        assert getattr(model.network, name) == value, name
    x = torch.randn(1, 2, 8, 8)
    assert torch.equal(model.output(x, 0.5), network(x, torch.tensor([499.5])))


@pytest.mark.parametrize(
    "network",
    [
        tiny(taps=None),
        tiny(taps=None, progressive_input="none"),
        tiny(fourier_scale=16.0, centered=False, scale_by_sigma=True),
        DDPMUNet(2, 32, (1, 2), 2, (0,)).eval(),
        DDPMUNet(2, 32, (1, 1, 1), 1, ()).eval(),
    ],
    ids=["plain", "ddpmpp", "fourier", "ddpm", "ddpm-three"],
)
def test_published_architectures_are_inferred(path, network):
    write(path, network)
    model = load(path, VP_TRAINING if network.centered else None, ema=False)
    assert repr(model.network) == repr(network)
    x = torch.randn(2, 2, 8, 8)
    label = torch.tensor([0.3, 0.5])
    assert torch.equal(model.network(x, label), network(x, label))


PYRAMIDS = {"progressive": "output_skip", "progressive_input": "input_skip"}
FOURIER = {"fourier_scale": 16.0, "scale_by_sigma": True, "centered": False}


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (NCSNpp, {"blocks": 8}),
        (NCSNpp, FOURIER),
        (NCSNpp, {"taps": None, "progressive_input": "none"}),
        (NCSNpp, FOURIER | PYRAMIDS | {"multipliers": (1, 1, 2, 2, 2, 2, 2), "attention": (4,)}),
        (DDPMUNet, {}),
        (DDPMUNet, {"multipliers": (1, 1, 2, 2, 4, 4), "attention": (4,)}),
    ],
)
def test_published_sizes_are_inferred(network, options):
    with torch.device("meta"):
        published = network(**options)
        architecture = score_sde._architecture(published.state_dict(), {})
        inferred = architecture.build(architecture.arguments)
    shapes = [
        {name: tensor.shape for name, tensor in each.state_dict().items()}
        for each in (inferred, published)
    ]
    assert type(inferred) is network
    assert shapes[0] == shapes[1]
    visible = ("multipliers", "blocks", "attention", "taps", "progressive", "progressive_input")
    for name in visible:
        assert getattr(inferred, name) == getattr(published, name), name


def test_old_file_format(path):
    content = torch.load(write(path, tiny(), optimizer=None), weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert load(path, VP_TRAINING).network.multipliers == (1, 2)


# --- files that are refused


class ShellCommand:
    """Its pickle runs a shell command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def test_commands_are_not_executed(path, tmp_path):
    marker = tmp_path / "executed"
    command = ShellCommand(marker)
    pickle.loads(pickle.dumps(command))
    assert marker.exists()  # a plain pickle.load runs it
    marker.unlink()
    path.write_bytes(pickle.dumps(command))
    with pytest.raises(ValueError, match=r"^path: .*was not executed"):
        score_sde.load(path)
    for part in ("model", "ema", "optimizer", "step"):
        write(path, tiny(), **{part: command})
        with pytest.raises(ValueError, match=r"^path: .*was not executed"):
            score_sde.load(path, VP_TRAINING)
    assert not marker.exists()


def test_truncated_files(path):
    content = write(path, tiny()).read_bytes()
    for length in (0, 1, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"^path: .*damaged"):
            score_sde.load(path, VP_TRAINING)


def test_foreign_files(path):
    path.write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"^path: .*of another kind"):
        score_sde.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"^path: .*'state_dict'"):
        score_sde.load(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"^path: .*\[1, 2\] \(list\)"):
        score_sde.load(path)
    write(path, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"^model: .*'sigmas'"):
        score_sde.load(path)
    with pytest.raises(FileNotFoundError, match=r"^path: "):
        score_sde.load(path.with_name("absent.pth"))


FULL = VP_TRAINING | {
    "model.name": "ncsnpp",
    "data.num_channels": 2,
    "data.image_size": 8,
    "model.nf": 8,
    "model.ch_mult": [1, 2],
    "model.num_res_blocks": 1,
    "model.attn_resolutions": [4],
}


@pytest.mark.parametrize("config", [VP_TRAINING, FULL], ids=["inferred", "configured"])
def test_damaged_weights(path, config):
    network, name = tiny(), "module.all_modules.3.Conv_0.weight"
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    load(write(path, network), config)

    def refused(message, **changes):
        write(path, network, **changes)
        with pytest.raises(ValueError, match=message):
            score_sde.load(path, config)

    refused(r"^model: ", model={key: value for key, value in state.items() if key != name})
    refused(r"^model: ", model=state | {name: state[name][:3]})
    bias = "module.all_modules.0.bias"
    refused(
        r"'all_modules.0.bias' of shape \(32,\), got \(3,\)",
        model=state | {bias: state[bias][:3]},
    )
    refused(
        r"^model: expected a tensor 'all_modules.0.bias'",
        model={key: value for key, value in state.items() if key != bias},
    )
    refused(r"^model: expected no tensor 'extra'", model=state | {"module.extra": torch.ones(1)})
    refused(r"^model: .*'all_modules.0.bias'", model=state | {bias: "text"})
    refused(r"^path: .*'model' \(dict\)", model=[1])
    refused(r"^path: .*'ema'.*none", ema=None)
    refused(r"^path: .*'shadow_params' \(list\)", ema={})
    average = [p.detach() for p in network.parameters()]
    refused(r"^ema: expected \d+ averages", ema={"shadow_params": average[1:]})
    swapped = [average[1], average[0], *average[2:]]
    refused(r"^ema: .*entry 0 .*all_modules.0.weight", ema={"shadow_params": swapped})
    load(write(path, network, ema=None), config, ema=False)


def test_missing_tensor_of_a_configured_network_is_named(path):
    name = "module.all_modules.3.Conv_0.weight"
    state = {f"module.{key}": value for key, value in tiny().state_dict().items()}
    write(path, tiny(), model={key: value for key, value in state.items() if key != name})
    with pytest.raises(ValueError, match=r"'all_modules.3.Conv_0.weight' of shape \(8, 8, 3, 3\)"):
        score_sde.load(path, FULL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.nf": 16}, r"^model: expected 'all_modules.0.weight' of shape \(64, 16\)"),
        ({"model.num_scales": 10}, r"^model: expected 'sigmas' of shape \(10,\)"),
        ({"model.sigma_max": 90.0}, r"^config: expected model.sigma_max = 50"),
        ({"model.embedding_type": "fourier"}, r"^model: expected .*'all_modules.0.W'"),
        ({"model.name": "ncsn"}, r"^config: expected model.name"),
        ({"model.nonlinearity": "relu"}, r"^config: expected model.nonlinearity"),
        ({"training.sde": "edm"}, r"^config: expected training.sde"),
    ],
)
def test_configurations_of_another_network(path, changes, message):
    write(path, tiny())
    with pytest.raises(ValueError, match=message):
        score_sde.load(path, FULL | changes)


def test_a_missing_training_configuration_is_refused(path):
    write(path, tiny())
    for config in (None, {"training.sde": "vpsde"}):
        with pytest.raises(ValueError, match=r"^config: expected an entry 'training\."):
            score_sde.load(path, config)
    with pytest.raises(TypeError, match=r"^config: expected a dictionary"):
        score_sde.load(path, "vpsde")
