"""Scores: views, conditions, shapes, and files that rebuild a model and run nothing."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scoresde import (
    DATA,
    DDPM,
    EDMSDE,
    FLOW,
    MLP,
    NCSN,
    NOISE,
    SCORE,
    VELOCITY,
    VESDE,
    VPSDE,
    CosineSDE,
    FunctionScore,
    Moments,
    RectifiedFlow,
    Score,
    ScoreModel,
    SubVPSDE,
    UNet,
    by_half_logsnr,
    by_index,
    by_sigma,
    by_time,
    edm,
)
from scoresde.scores.labels import LogSNRLabel, TimeLabel

EVENTS = [(), (5,), (1, 8, 8), (3, 4, 4, 4)]


def wake(network: nn.Module) -> nn.Module:
    """Random weights where the library starts from zeros."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


class Linear(nn.Module):
    """A network that is not of this library; it knows a condition."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(d + 1, d)

    def forward(self, x: Tensor, label: Tensor, shift: Tensor | None = None) -> Tensor:
        out = self.layer(torch.cat([x, label[:, None].to(x)], 1))
        return out if shift is None else out + shift.reshape(len(x), -1)


# --- views


class Shrunk(Score):
    """x̂ = x/2, by hand."""

    def denoised(self, x, t):
        return 0.5 * x


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_method_makes_a_score(event, dtype):
    sde = SubVPSDE()
    score, x = Shrunk(sde), torch.randn(3, *event, dtype=dtype)
    for t in (0.3, torch.tensor(0.3), torch.full((3,), 0.3)):
        alpha, sigma = float(sde.alpha(0.3)), float(sde.sigma(0.3))
        noise = (x - alpha * 0.5 * x) / sigma
        torch.testing.assert_close(score.noise(x, t), noise, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(score(x, t), -noise / sigma, rtol=1e-5, atol=1e-6)
        velocity = alpha * noise - sigma * 0.5 * x
        torch.testing.assert_close(score.velocity(x, t), velocity, rtol=1e-5, atol=1e-6)
        assert score(x, t).dtype == dtype
    assert score.select(slice(0, 2)) is score
    assert not score.moments.known


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_a_model_takes_every_event_shape_and_time(event, device):
    model = ScoreModel(wake(MLP(event, width=8, depth=1)), VPSDE()).to(device)
    x = torch.randn(3, *event, device=device)
    results = [model(x, t) for t in (0.4, torch.tensor(0.4), torch.full((3,), 0.4, device=device))]
    for value in results:
        assert value.shape == x.shape
        torch.testing.assert_close(value, results[0])
    double = model(x.double(), 0.4)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), results[0], rtol=1e-4, atol=1e-5)


def test_a_model_stays_in_the_network_and_the_states_own_dtypes():
    model = ScoreModel(wake(MLP((2,), width=8, depth=1)), VPSDE()).to(torch.bfloat16)
    assert next(model.network.parameters()).dtype == torch.bfloat16
    assert model(torch.randn(3, 2), 0.5).dtype == torch.float32


def test_scores_and_function_transforms():
    """Divergences come from vjp, jvp and vmap of a score."""
    model = ScoreModel(wake(MLP((2,), width=8, depth=1)), VPSDE()).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v, 0.3).sum(0), x)
    by_func = torch.func.vmap(torch.func.jacrev(lambda v: model(v[None], 0.3)[0]))(x)
    torch.testing.assert_close(by_func, jacobian.permute(1, 0, 2))


def test_a_function_is_a_score():
    seen = []

    def function(x, t):
        seen.append(t)
        return -x

    score = FunctionScore(function, VPSDE())
    x = torch.randn(3, 2)
    assert torch.equal(score(x, 0.0), -x)
    assert seen[0].dtype == torch.float64
    predicted = FunctionScore(lambda x, t: x, VPSDE(), NOISE)
    torch.testing.assert_close(predicted(x, 0.5), -x / VPSDE().sigma(0.5).float())


# --- conditions


def test_conditions_are_bound_once():
    model = ScoreModel(Linear(), VPSDE())
    x = torch.randn(4, 2)
    shift = torch.randn(4, 2)
    bound = model.given(shift=shift)
    free = model.noise(x, 0.5)
    torch.testing.assert_close(bound.noise(x, 0.5), free + shift)
    assert torch.equal(model.noise(x, 0.5), free)
    assert bound.network is model.network
    number = model.given(shift=2.0)
    torch.testing.assert_close(number.noise(x, 0.5), free + 2.0)
    again = bound.given(shift=torch.zeros(4, 2))
    torch.testing.assert_close(again.noise(x, 0.5), free)


def test_rows_take_their_conditions_along():
    model = ScoreModel(Linear(), VPSDE())
    x, shift = torch.randn(4, 2), torch.randn(4, 2)
    whole = model.given(shift=shift).noise(x, 0.5)
    for index in (slice(1, 3), torch.tensor([3, 0])):
        part = model.given(shift=shift).select(index)
        torch.testing.assert_close(part.noise(x[index], 0.5), whole[index])
    shared = model.given(shift=1.0).select(slice(0, 1))
    torch.testing.assert_close(shared.noise(x[:1], 0.5), model.given(shift=1.0).noise(x, 0.5)[:1])


def test_binding_a_condition_leaves_the_networks_mode():
    network = Linear().eval()
    model = ScoreModel(network, VPSDE())
    assert model.training
    bound = model.given(shift=1.0)
    assert bound.training
    assert not network.training
    assert not model.eval().given(shift=1.0).training


def test_classes():
    model = ScoreModel(wake(MLP((2,), width=8, depth=1, classes=3)), VPSDE())
    x = torch.randn(3, 2)
    one = [model.given(classes=c)(x[c : c + 1], 0.5) for c in range(3)]
    torch.testing.assert_close(model.given(classes=torch.arange(3))(x, 0.5), torch.cat(one))


# --- files

NETWORKS = [
    MLP((2,), width=8, depth=2, label_scale=1.0),
    MLP((3, 4), width=8, depth=1, classes=4, dropout=0.1),
    UNet(1, width=8, multipliers=(1,), blocks=1, attention=()),
]
SDES = [
    VPSDE(0.2, 15.0, T=1.5, t_min=1e-4),
    SubVPSDE(),
    VESDE(0.02, 30.0),
    CosineSDE(s=0.01),
    EDMSDE(0.004, 70.0),
    RectifiedFlow(T=0.99),
    DDPM.cosine(20),
    DDPM.linear(N=30).zero_terminal_snr(),
    NCSN.geometric(N=15),
]
PREDICTIONS = [NOISE, DATA, SCORE, VELOCITY, FLOW, edm(0.7)]
LABELS = [by_time, TimeLabel(999.0), by_sigma, by_half_logsnr, LogSNRLabel(-0.25), by_index]


def same(model: ScoreModel, loaded: ScoreModel) -> None:
    event = getattr(model.network, "event_shape", (1, 4, 4))
    x = torch.randn(3, *event)
    t = model.sde.T * torch.tensor([0.1, 0.5, 1.0])
    model.eval()
    assert torch.equal(loaded(x, t), model(x, t))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: type(n).__name__)
@pytest.mark.parametrize("sde", SDES, ids=str)
def test_networks_and_sdes_come_back(network, sde, tmp_path):
    model = ScoreModel(wake(network), sde, VELOCITY, by_half_logsnr)
    model.save(tmp_path / "model.safetensors")
    loaded = ScoreModel.load(tmp_path / "model.safetensors")
    assert type(loaded.sde) is type(sde)
    assert str(loaded.sde) == str(sde)
    assert (loaded.sde.T, loaded.sde.t_min) == (sde.T, sde.t_min)
    assert not loaded.training
    same(model, loaded)


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
@pytest.mark.parametrize("label", LABELS, ids=repr)
def test_predictions_and_labels_come_back(prediction, label, tmp_path):
    model = ScoreModel(wake(MLP((2,), width=8, depth=1)), DDPM.linear(N=20), prediction, label)
    model.save(tmp_path / "model")
    loaded = ScoreModel.load(str(tmp_path / "model"))
    assert loaded.prediction == prediction
    assert loaded.label == label
    same(model, loaded)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_come_back(dtype, tmp_path):
    model = ScoreModel(wake(MLP((2,), width=8, depth=1)).to(dtype), VPSDE())
    model.save(tmp_path / "model")
    loaded = ScoreModel.load(tmp_path / "model")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(p.requires_grad for p in loaded.parameters())
    same(model, loaded)


@pytest.mark.parametrize(
    "moments", [Moments(), Moments(1.5, 2.0, known=True), Moments.of(torch.randn(20, 2))], ids=repr
)
def test_moments_come_back(moments, tmp_path):
    ScoreModel(MLP((2,), width=8, depth=1), VPSDE(), moments=moments).save(tmp_path / "model")
    loaded = ScoreModel.load(tmp_path / "model").moments
    assert loaded.known == moments.known
    for name, value in moments.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


class Quadratic(VPSDE):
    """A diffusion that is not of this library."""


def double_time(sde, t):
    return 2 * t


def test_foreign_parts_have_to_be_handed_in(tmp_path):
    file = tmp_path / "model"
    model = ScoreModel(Linear(), Quadratic(), label=double_time)
    model.save(file)
    parts = {"network": Linear(), "sde": Quadratic(), "label": double_time}
    for name in parts:
        others = {key: value for key, value in parts.items() if key != name}
        with pytest.raises(ValueError, match=f"{name}.*pass {name}="):
            ScoreModel.load(file, **others)
    loaded = ScoreModel.load(file, **parts)
    x = torch.randn(3, 2)
    assert torch.equal(loaded(x, 0.5), model(x, 0.5))
    with pytest.raises(ValueError, match=r"weights in .* do not fit"):
        ScoreModel.load(file, Linear(3), sde=Quadratic(), label=double_time)


def test_a_given_network_keeps_its_dtype(tmp_path):
    ScoreModel(Linear(), VPSDE()).save(tmp_path / "model")
    loaded = ScoreModel.load(tmp_path / "model", Linear().double())
    assert next(loaded.parameters()).dtype == torch.float64


def test_a_condition_is_not_part_of_the_file(tmp_path):
    model = ScoreModel(wake(MLP((2,), width=8, depth=1, classes=3)), VPSDE())
    model.given(classes=1).save(tmp_path / "model")
    loaded = ScoreModel.load(tmp_path / "model")
    assert loaded.condition == {}
    same(model, loaded)


def test_shared_weights_can_be_saved(tmp_path):
    network = Linear()
    network.again = network.layer
    model = ScoreModel(network, VPSDE())
    model.save(tmp_path / "model")
    other = Linear()
    other.again = other.layer
    x = torch.randn(2, 2)
    assert torch.equal(ScoreModel.load(tmp_path / "model", other)(x, 0.5), model(x, 0.5))


def test_a_file_is_safetensors_with_readable_metadata(tmp_path):
    model = ScoreModel(MLP((2,), width=8, depth=1), VPSDE(), VELOCITY)
    model.save(tmp_path / "model")
    with safe_open(tmp_path / "model", framework="pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["model"])
    assert metadata["format"] == "scoresde.ScoreModel"
    assert record["sde"]["class"] == "VPSDE"
    assert record["sde"]["arguments"]["beta_max"] == 20.0
    assert record["prediction"] == {"class": "VelocityPrediction", "arguments": {}}


# --- files that must be refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    ScoreModel(MLP((2,), width=8, depth=1), DDPM.linear(N=5)).save(path)
    return path


@pytest.mark.parametrize("part", [0.0, 1e-4, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_files_are_refused(part, saved, tmp_path):
    whole = saved.read_bytes()
    (tmp_path / "model").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ValueError, match="path: expected a safetensors file"):
        ScoreModel.load(tmp_path / "model")


class Burglar:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_and_nothing_runs(tmp_path):
    file, trace = tmp_path / "model", tmp_path / "burgled"
    for protocol in (0, 2, 5):
        file.write_bytes(pickle.dumps({"model": Burglar(trace)}, protocol=protocol))
        with pytest.raises(ValueError, match="path: expected a safetensors file"):
            ScoreModel.load(file)
    torch.save({"model": Burglar(trace)}, file)
    with pytest.raises(ValueError, match="path: expected a safetensors file"):
        ScoreModel.load(file)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Burglar(trace)))  # the trap does work
    assert trace.exists()


def forged(saved: Path, path: Path, change) -> Path:
    """The saved file with its record changed."""
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    metadata = change(metadata, tensors)
    save_file(tensors, path, metadata=metadata)
    return path


def with_record(**parts):
    def change(metadata, tensors):
        record = {**json.loads(metadata["model"]), **parts}
        return {**metadata, "model": json.dumps(record)}

    return change


def without_tensor(name):
    def change(metadata, tensors):
        del tensors[name]
        return metadata

    return change


FORGERIES = {
    "another program": lambda metadata, tensors: {"format": "pt"},
    "no metadata": lambda metadata, tensors: None,
    "no record": lambda metadata, tensors: {"format": metadata["format"]},
    "broken record": lambda metadata, tensors: {**metadata, "model": "{"},
    "list for a record": lambda metadata, tensors: {**metadata, "model": "[1]"},
    "empty record": lambda metadata, tensors: {**metadata, "model": "{}"},
    "unknown class": with_record(network={"class": "os.system", "arguments": {"command": "ls"}}),
    "private class": with_record(sde={"class": "GaussianSDE", "arguments": {}}),
    "wrong arguments": with_record(sde={"class": "VPSDE", "arguments": {"beta": 1.0}}),
    "bad value": with_record(sde={"class": "VPSDE", "arguments": {"beta_min": -1.0}}),
    "wrong kind": with_record(sde={"class": "VPSDE", "arguments": {"beta_min": "a"}}),
    "no arguments": with_record(sde={"class": "VPSDE"}),
    "list of arguments": with_record(sde={"class": "VPSDE", "arguments": []}),
    "class of no name": with_record(sde={"class": ["VPSDE"], "arguments": {}}),
    "function for a dtype": with_record(
        sde={"class": "DDPM", "arguments": {"betas": {"tensor": [0.1, 0.2], "dtype": "load"}}}
    ),
    "text for numbers": with_record(
        sde={"class": "DDPM", "arguments": {"betas": {"tensor": "x", "dtype": "float64"}}}
    ),
    "no moments": without_tensor("moments.mean"),
    "missing weight": without_tensor("network.output.weight"),
    "other width": with_record(
        network={"class": "MLP", "arguments": {"event_shape": [2], "width": 16}}
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_foreign_and_forged_files_are_refused(name, saved, tmp_path):
    file = forged(saved, tmp_path / "model", FORGERIES[name])
    with pytest.raises(ValueError, match=r"\w+.*: "):
        ScoreModel.load(file)


@pytest.mark.parametrize("part", ["network", "sde", "prediction", "label"])
@pytest.mark.parametrize("other", ["MLP", "VPSDE", "NoisePrediction"])
def test_a_part_of_the_wrong_kind_is_refused(part, other, saved, tmp_path):
    arguments = {"event_shape": [2]} if other == "MLP" else {}
    kinds = {"network": "MLP", "sde": "VPSDE", "prediction": "NoisePrediction"}
    if kinds.get(part) == other or (part, other) == ("label", "MLP"):
        pytest.skip("that is the right kind")
    record = {part: {"class": other, "arguments": arguments}}
    file = forged(saved, tmp_path / "model", with_record(**record))
    with pytest.raises((ValueError, TypeError), match=part):
        ScoreModel.load(file)
