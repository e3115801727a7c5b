"""Bad input of public functions: an error of the right type that names the argument.

Each row of the table is a name, a call, the type of the error and a pattern of its message.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scoresde import (
    DDPM,
    EDMSDE,
    MLP,
    NCSN,
    NOISE,
    VESDE,
    VPSDE,
    CosineSDE,
    FunctionScore,
    GaussianMixture,
    Moments,
    RectifiedFlow,
    ScoreModel,
    SubVPSDE,
    ddim,
    edm,
    fit,
    log_likelihood,
    sample,
)
from scoresde.interop import diffusers, to_kdiffusion
from scoresde.likelihood import PathIntegral
from scoresde.samplers import Ancestral, Karras, Langevin, PredictorCorrector, ProbabilityFlow
from scoresde.scores.predictions import Prediction
from scoresde.solvers import Adams
from scoresde.traces import ExactTrace
from scoresde.training import Simple, Stratified

SDE = VPSDE()
X = torch.randn(4, 2)
NAN = X.clone()
NAN[1, 1] = math.nan
INTEGER = torch.ones(4, 2, dtype=torch.long)
MIXTURE = GaussianMixture(torch.ones(2), torch.randn(2, 2), torch.eye(2).expand(2, 2, 2), SDE)
MODEL = ScoreModel(MLP((2,), width=8, depth=1, classes=3), SDE)


class Wide(nn.Module):
    def forward(self, x, label):
        return torch.cat([x, x], 1)


class Tuple(nn.Module):
    def forward(self, x, label):
        return (x,)


def mixture(weights=(1.0, 1.0), means=((0.0,), (1.0,)), covariances=(((1.0,),), ((1.0,),))):
    tensors = (torch.tensor(v) for v in (weights, means, covariances))
    return GaussianMixture(*tensors, SDE)


InvalidCall = tuple[str, Callable[[], object], type[Exception], str]

CORE: list[InvalidCall] = [
    # states
    ("NaN data", lambda: SDE.marginal(NAN, 0.5), ValueError, r"x0: expected finite.*\(1, 1\)"),
    ("NaN to perturb", lambda: SDE.perturb(NAN, 0.5, X), ValueError, "x0: expected finite"),
    ("integer data", lambda: SDE.perturb(INTEGER, 0.5, X), TypeError, r"x0: .*\.float\(\)"),
    ("integer noise", lambda: SDE.perturb(X, 0.5, INTEGER), TypeError, "noise: expected a float"),
    ("noise shape", lambda: SDE.perturb(X, 0.5, X[:2]), ValueError, r"noise: .*\(4, 2\).*\(2, 2\)"),
    ("array for a state", lambda: SDE.drift(X.numpy(), 0.5), TypeError, "x: .*torch.as_tensor"),
    ("integer state", lambda: SDE.drift(INTEGER, 0.5), TypeError, "x: expected a floating"),
    ("integer to reverse", lambda: SDE.reverse(MIXTURE).drift(INTEGER, 0.5), TypeError, "x: "),
    ("integer to a model", lambda: MODEL(INTEGER, 0.5), TypeError, "x: expected a floating"),
    ("integer to a mixture", lambda: MIXTURE(INTEGER, 0.5), TypeError, "x: expected a floating"),
    ("NaN to a density", lambda: MIXTURE.log_prob(NAN), ValueError, "x: expected finite"),
    ("integer density", lambda: MIXTURE.log_prob(INTEGER), TypeError, "x: expected a floating"),
    ("event shape", lambda: MIXTURE.log_prob(X[:, :1]), ValueError, r"x: .*\(batch, 2\).*\(4, 1\)"),
    ("one sample for a batch", lambda: MIXTURE.log_prob(X[0]), ValueError, r"x: .*got \(2,\)"),
    ("event of a network", lambda: MODEL(X[:, :1], 0.5), ValueError, r"x: .*\(4, 1\)"),
    # times
    ("t above T", lambda: SDE.alpha(1.5), ValueError, r"t: expected times in \[0, 1\], got 1.5"),
    ("t below 0", lambda: SDE.marginal(X, -0.1), ValueError, r"t: expected times in \[0, 1\]"),
    ("t above another T", lambda: CosineSDE().drift(X, 1.0), ValueError, r"in \[0, 0.995\]"),
    ("t for a model", lambda: MODEL(X, 1.01), ValueError, "t: expected times in"),
    ("one t of many", lambda: MODEL(X, torch.tensor([0.1, 0.2, 9, 0])), ValueError, "t: .* 9"),
    ("NaN t", lambda: SDE.diffusion(math.nan), ValueError, "t: expected finite"),
    ("infinite t", lambda: SDE.diffusion(math.inf), ValueError, "t: expected finite"),
    ("text for t", lambda: SDE.alpha("a"), TypeError, "t: expected a float"),
    ("None for t", lambda: SDE.alpha(None), TypeError, "t: expected a float.*NoneType"),
    ("index for t", lambda: SDE.alpha(torch.tensor([1, 2])), TypeError, "t: .*times"),
    ("batch of t", lambda: SDE.drift(X, torch.rand(3)), ValueError, r"t: .*\(4,\).*\(3,\)"),
    ("t to perturb", lambda: SDE.perturb(X, torch.rand(3), X), ValueError, r"t: .*\(3,\)"),
    ("t to a model", lambda: MODEL(X, torch.rand(5)), ValueError, r"t: .*\(5,\)"),
    ("t to a mixture", lambda: MIXTURE.divergence(X, torch.rand(5)), ValueError, r"t: .*\(5,\)"),
    ("t to reverse", lambda: SDE.reverse(MIXTURE).drift(X, torch.rand(5)), ValueError, "t: "),
    ("matrix of t", lambda: SDE.drift(X, torch.rand(4, 1)), ValueError, r"t: .*squeeze"),
    ("kernel backward", lambda: SDE.transition(0.5, 0.2), ValueError, "s, t: expected s <= t"),
    ("NaN log-SNR", lambda: SDE.time_at(math.nan), ValueError, "half_logsnr: .*NaN"),
    ("integer log-SNR", lambda: SDE.time_at(torch.tensor([1])), TypeError, "half_logsnr: "),
    # diffusions
    ("negative rate", lambda: VPSDE(-0.1), ValueError, "beta_min.*beta_min=-0.1"),
    ("rates swapped", lambda: SubVPSDE(20.0, 0.1), ValueError, "beta_min <= beta_max"),
    ("no rate at all", lambda: VPSDE(0.0, 0.0), ValueError, "beta_max > 0"),
    ("infinite rate", lambda: VPSDE(0.1, math.inf), ValueError, "beta_max.*finite"),
    ("NaN rate", lambda: VPSDE(math.nan), ValueError, "beta_min"),
    ("levels swapped", lambda: VESDE(50.0, 0.01), ValueError, "sigma_min < sigma_max"),
    ("equal levels", lambda: VESDE(1.0, 1.0), ValueError, "sigma_min < sigma_max"),
    ("negative level", lambda: EDMSDE(-0.1), ValueError, "0 < sigma_min"),
    ("zero level", lambda: VESDE(0.0), ValueError, "0 < sigma_min"),
    ("T zero", lambda: VPSDE(T=0.0), ValueError, "t_min.*T"),
    ("t_min above T", lambda: VPSDE(t_min=2.0), ValueError, "t_min < T"),
    ("negative t_min", lambda: VPSDE(t_min=-1.0), ValueError, "t_min: "),
    ("infinite T", lambda: VPSDE(T=math.inf), ValueError, "T: expected a finite"),
    ("text for T", lambda: VPSDE(T="1"), TypeError, "T: expected a finite number"),
    ("cosine to its end", lambda: CosineSDE(T=1.0), ValueError, "T < 1"),
    ("negative offset", lambda: CosineSDE(s=-0.1), ValueError, "s >= 0"),
    ("flow to its end", lambda: RectifiedFlow(T=1.0), ValueError, "T < 1"),
    ("negative eta", lambda: SDE.reverse(MIXTURE, -1.0), ValueError, "eta: expected a number >= 0"),
    ("NaN eta", lambda: SDE.reverse(MIXTURE, math.nan), ValueError, "eta: "),
    ("no score", lambda: SDE.reverse(None), TypeError, "score: expected a callable"),
    ("score shape", lambda: SDE.reverse(lambda x, t: x[:1]).drift(X, 0.5), ValueError, "score: "),
    ("score kind", lambda: SDE.reverse(lambda x, t: 1.0).drift(X, 0.5), TypeError, "score: "),
    # tables
    ("beta zero", lambda: DDPM(torch.tensor([0.0, 0.1])), ValueError, "betas: .*0 … 0.1"),
    ("beta above one", lambda: DDPM(torch.tensor([0.1, 1.1])), ValueError, "betas: "),
    ("beta one inside", lambda: DDPM(torch.tensor([1.0, 0.1])), ValueError, "betas: "),
    ("NaN beta", lambda: DDPM(torch.tensor([0.1, math.nan])), ValueError, "betas: .*finite"),
    ("one beta", lambda: DDPM(torch.tensor([0.1])), ValueError, "betas: .*N >= 2"),
    ("matrix of betas", lambda: DDPM(torch.full((2, 2), 0.1)), ValueError, r"betas: .*\(2, 2\)"),
    ("text for betas", lambda: DDPM("linear"), TypeError, "betas: .*str"),
    ("one noise level", lambda: NCSN.geometric(N=1), ValueError, "N: .*at least 2"),
    ("half a step", lambda: DDPM.linear(N=10.5), TypeError, "N: expected an integer"),
    ("table levels swapped", lambda: NCSN.geometric(5.0, 1.0), ValueError, "sigma_min < sigma_max"),
    ("negative table level", lambda: NCSN(torch.tensor([-1.0, 1.0])), ValueError, "sigmas: "),
    ("a level of zero", lambda: NCSN(torch.tensor([0.0, 1.0])), ValueError, "sigmas: .*positive"),
    ("repeated level", lambda: NCSN(torch.tensor([1.0, 1.0])), ValueError, "sigmas: .*differ"),
    ("too few steps", lambda: VPSDE().discretize(10), ValueError, "betas: .*more steps"),
    ("no index", lambda: SDE.index_at(0.5), NotImplementedError, "VPSDE has no table"),
    # scores
    ("no diffusion", lambda: FunctionScore(torch.sin, 1), TypeError, "sde: expected an SDE"),
    ("no function", lambda: FunctionScore(1, SDE), TypeError, "function: expected a callable"),
    ("no network", lambda: ScoreModel(None, SDE), TypeError, "network: .*NoneType"),
    ("no prediction", lambda: ScoreModel(Wide(), SDE, "noise"), TypeError, "prediction: .*NOISE"),
    ("no label", lambda: ScoreModel(Wide(), SDE, label=1.0), TypeError, "label: "),
    ("output shape", lambda: ScoreModel(Wide(), SDE)(X, 0.5), ValueError, r"network: .*\(4, 4\)"),
    ("output kind", lambda: ScoreModel(Tuple(), SDE)(X, 0.5), TypeError, "network: .*tuple"),
    ("function's output", lambda: FunctionScore(lambda x, t: t, SDE)(X, 0.5), ValueError, "functi"),
    ("unknown condition", lambda: MODEL.given(hue=1), TypeError, "condition: .*'hue'.*class"),
    ("condition of no network", lambda: ScoreModel(Wide(), SDE).given(y=1), TypeError, "at all"),
    (
        "rows of a condition",
        lambda: MODEL.given(classes=torch.arange(3))(X, 0.5),
        ValueError,
        "row",
    ),
    ("class out of range", lambda: MODEL.given(classes=7)(X, 0.5), ValueError, "classes: "),
    ("negative sigma_data", lambda: edm(-0.5), ValueError, "sigma_data: "),
    # mixtures
    ("weight zero", lambda: mixture(weights=(0.0, 1.0)), ValueError, "weights: .*positive"),
    ("NaN weight", lambda: mixture(weights=(math.nan, 1.0)), ValueError, "weights: "),
    ("missing mean", lambda: mixture(means=((0.0,),)), ValueError, r"means: .*\(2, \*event\)"),
    ("NaN mean", lambda: mixture(means=((0.0,), (math.nan,))), ValueError, "means: expected fin"),
    (
        "variances",
        lambda: mixture(covariances=(1.0, 1.0)),
        ValueError,
        r"covariances: .*\(2, 1, 1\)",
    ),
    (
        "negative variance",
        lambda: mixture(covariances=(((1.0,),), ((-1.0,),))),
        ValueError,
        "covariances: expected positive definite",
    ),
    (
        "asymmetric",
        lambda: GaussianMixture(
            torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.5], [0.0, 1.0]]]), SDE
        ),
        ValueError,
        "covariances: expected symmetric",
    ),
    ("no samples", lambda: MIXTURE.sample(0), ValueError, "n: expected an integer, at least 1"),
    ("half a sample", lambda: MIXTURE.sample(2.5), TypeError, "n: expected an integer"),
    ("mixture time", lambda: MIXTURE.sample(2, 2.0), ValueError, "t: expected times in"),
    # names and classes in place of objects
    ("name of a sampler", lambda: sample(MODEL, (2, 2), "ddim"), TypeError, r"sampler: .*ddim\(\)"),
    *(
        (
            f"class for {name}",
            act,
            TypeError,
            rf"{name}: expected .*pass an instance, {kind.__name__}\(…\), not the class",
        )
        for name, kind, act in (
            ("sampler", Ancestral, lambda: sample(MODEL, (2, 2), Ancestral)),
            ("score", ScoreModel, lambda: sample(ScoreModel, (2, 2), ddim())),
            ("sde", VPSDE, lambda: ScoreModel(Wide(), VPSDE)),
            ("prediction", Prediction, lambda: ScoreModel(Wide(), SDE, Prediction)),
            ("trace", ExactTrace, lambda: log_likelihood(MODEL, X, trace=ExactTrace)),
            ("method", PathIntegral, lambda: log_likelihood(MODEL, X, method=PathIntegral)),
            ("solver", Adams, lambda: ProbabilityFlow(solver=Adams)),
            ("corrector", Langevin, lambda: PredictorCorrector(Ancestral(), Langevin)),
            ("time_sampler", Stratified, lambda: fit(MODEL, X, steps=1, time_sampler=Stratified)),
            ("sde", VPSDE, lambda: diffusers.scheduler_config(VPSDE)),
            ("score", ScoreModel, lambda: to_kdiffusion(ScoreModel)),
            ("grid", Karras, lambda: to_kdiffusion(MODEL).get_sigmas(4, Karras)),
        )
    ),
    *(
        (f"name of a {name}", act, TypeError, rf"{name}: .*pass the object \w+\(\), not a name")
        for name, act in (
            ("sde", lambda: ScoreModel(Wide(), "vp")),
            ("trace", lambda: log_likelihood(MODEL, X, trace="exact")),
            ("method", lambda: log_likelihood(MODEL, X, method="flow")),
            ("solver", lambda: ProbabilityFlow(solver="rk45")),
            ("grid", lambda: to_kdiffusion(MODEL).get_sigmas(4, "karras")),
        )
    ),
    (
        "class of a weighting",
        lambda: fit(MODEL, X, steps=1, weighting=Simple),
        TypeError,
        r"weighting: .*pass an instance",
    ),
    # moments
    ("NaN in the data", lambda: Moments.of(NAN), ValueError, "data: expected finite"),
    ("integers in the data", lambda: Moments.of(INTEGER), TypeError, "data: expected a floating"),
    ("empty data", lambda: Moments.of(X[:0]), ValueError, "data: expected at least one sample"),
    ("one datum", lambda: Moments.of(X[:1]), ValueError, "data: expected at least 2"),
    ("negative moment", lambda: Moments(0.0, -1.0), ValueError, "variance: "),
    ("NaN moment", lambda: Moments(math.nan, 1.0), ValueError, "mean: "),
    ("other mean", lambda: Moments(torch.zeros(3), torch.ones(2)), ValueError, "variance: .*3.*2"),
    ("basis", lambda: Moments(0.0, torch.ones(2), torch.eye(3)), ValueError, r"basis: .*\(3, 3\)"),
]


@pytest.mark.parametrize("row", CORE, ids=lambda row: row[0])
def test_an_error_names_the_argument(row):
    _, act, error, message = row
    with pytest.raises(error, match=f"(?s){message}"):
        act()


# --- files


def truncated(path: Path) -> None:
    MODEL.save(path)
    path.write_bytes(path.read_bytes()[:-10])


def foreign(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt"})


def pickled(path: Path) -> None:
    torch.save(MODEL.state_dict(), path)


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.ones(3))


FILES = [
    ("truncated", truncated, ValueError, "path: expected a safetensors file.*damaged"),
    ("foreign", foreign, ValueError, "path: .*safetensors file of another program.*format"),
    ("pickle", pickled, ValueError, "path: expected a safetensors file"),
    ("npz", archive, ValueError, "path: expected a safetensors file"),
    ("empty", lambda path: path.write_bytes(b""), ValueError, "path: expected a safetensors file"),
    ("missing", lambda path: None, FileNotFoundError, "path: expected the path of an existing"),
    ("folder", lambda path: path.mkdir(), IsADirectoryError, "path: .*folder"),
]


@pytest.mark.parametrize("row", FILES, ids=lambda row: row[0])
def test_an_error_names_the_file(row, tmp_path, monkeypatch):
    _, make, error, message = row
    monkeypatch.chdir(tmp_path)
    path = Path("model.safetensors")
    make(path)
    with pytest.raises(error, match=f"(?s){message}") as raised:
        ScoreModel.load(path)
    assert "model.safetensors" in str(raised.value)


def test_a_path_is_text():
    with pytest.raises(TypeError, match="path: expected the path of a file"):
        ScoreModel.load(3)


def test_a_function_cannot_be_saved(tmp_path):
    model = ScoreModel(Wide(), SDE)
    del model.network
    model.network = torch.sin
    with pytest.raises(TypeError, match=r"network: expected an nn.Module to save"):
        model.save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_network_of_another_has_to_come_along(tmp_path):
    ScoreModel(Wide(), SDE, NOISE).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"network: expected the Wide .*pass network="):
        ScoreModel.load(tmp_path / "model")
