"""Denoisers of EDM and k-diffusion as scores, and scores in their published sampling loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from scoresde import EDMSDE, MLP, VPSDE, GaussianMixture, RectifiedFlow, ScoreModel, SubVPSDE
from scoresde.interop import edm
from scoresde.samplers import Exponential, Heun, Karras, sample
from scoresde.scores.labels import LogSNRLabel
from scoresde.scores.predictions import edm as preconditioned
from scoresde.sdes import MEMBERS
from scoresde.sdes.base import SDE

every_sde = pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.__qualname__)
MEANS = torch.tensor([[-1.0, 0.5], [0.7, -0.2]], dtype=torch.float64)
VARIANCE = 0.05


def denoise(y: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_0 + σ ε = y] for a mixture of two Gaussians, in closed form."""
    std = VARIANCE + sigma.double().reshape(-1, 1, 1) ** 2
    difference = y.double()[:, None] - MEANS
    weights = torch.softmax(-difference.square().sum(2) / (2 * std[..., 0]), dim=1)
    return (weights[..., None] * (MEANS + VARIANCE / std * difference)).sum(1).to(y)


def mixture(sde) -> GaussianMixture:
    eye = VARIANCE * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return GaussianMixture(torch.ones(2), MEANS, eye, sde)


# --- denoisers as scores


@every_sde
def test_a_denoiser_is_a_score_of_every_diffusion(member):
    sde = member()
    model, exact = edm.wrap(denoise, sde), mixture(sde)
    t = torch.tensor([max(sde.t_min, 1e-3 * sde.T), 0.5 * sde.T, sde.T], dtype=torch.float64)
    x = sde.perturb(torch.randn(3, 2, dtype=torch.float64), t, torch.randn(3, 2).double())
    torch.testing.assert_close(model(x, t), exact(x, t), rtol=1e-8, atol=1e-10)


class Precond(nn.Module):
    """EDM's preconditioning, as in table 1 of the paper."""

    def __init__(self, inner: nn.Module, sigma_data: float) -> None:
        super().__init__()
        self.inner, self.sigma_data = inner, sigma_data

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = sigma.to(torch.float32).reshape(-1, *(1,) * (x.ndim - 1))
        total = self.sigma_data**2 + sigma**2
        skip, out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        output = self.inner(x / total.sqrt(), sigma.flatten().log() / 4, class_labels)
        return skip * x + out * output


def test_a_preconditioned_network_equals_its_bare_network_with_a_prediction():
    inner = MLP((2,), width=16, depth=1, classes=3)
    wrapped = edm.wrap(Precond(inner, 0.5))
    bare = ScoreModel(inner, EDMSDE(), preconditioned(0.5), LogSNRLabel(-0.25))
    x, t = torch.randn(4, 2), torch.tensor([0.01, 0.3, 3.0, 60.0])
    classes = torch.tensor([0, 2, 1, 1])
    found = wrapped.given(class_labels=classes).denoised(x, t)
    expected = bare.given(classes=classes).denoised(x, t)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"^network: "):
        edm.wrap("net")
    with pytest.raises(TypeError, match=r"^score: expected a Score"):
        edm.to_kdiffusion(denoise)


# --- scores as denoisers


@every_sde
def test_every_score_is_a_denoiser(member):
    sde = member()
    D = edm.to_kdiffusion(mixture(sde))
    span = math.log(D.sigma_max / D.sigma_min)
    sigma = D.sigma_min * torch.exp(span * torch.tensor([0.0, 0.3, 0.7, 1.0]).double())
    y = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(D(y, sigma), denoise(y, sigma), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(D(y, sigma[2]), denoise(y, sigma[2].expand(4)), rtol=1e-6, atol=1e-6)


def test_a_denoiser_survives_the_round_trip():
    D = edm.to_kdiffusion(edm.wrap(denoise, SubVPSDE()))
    y, sigma = torch.randn(3, 2), torch.tensor([0.1, 1.0, 50.0])
    torch.testing.assert_close(D(y, sigma), denoise(y, sigma), rtol=1e-5, atol=1e-5)


def sample_euler(model: Callable, x: Tensor, sigmas: Tensor) -> Tensor:
    """k-diffusion's ``sample_euler`` without churn."""
    s_in = x.new_ones([x.shape[0]])
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * s_in)
        d = (x - denoised) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def sample_dpmpp_2m(model: Callable, x: Tensor, sigmas: Tensor) -> Tensor:
    """k-diffusion's ``sample_dpmpp_2m``."""
    s_in = x.new_ones([x.shape[0]])
    old = None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * s_in)
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        h = t_next - t
        if old is None or sigmas[i + 1] == 0:
            x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * denoised
        else:
            r = (t + sigmas[i - 1].log()) / h
            denoised_d = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
            x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * denoised_d
        old = denoised
    return x


def edm_sampler(net: nn.Module, latents: Tensor, num_steps: int) -> Tensor:
    """EDM's algorithm 1 (its second without churn), with its own calls of the network."""
    sigma_min, sigma_max = max(0.002, net.sigma_min), min(80.0, net.sigma_max)
    i = torch.arange(num_steps, dtype=torch.float64)
    ramp = i / (num_steps - 1) * (sigma_min ** (1 / 7) - sigma_max ** (1 / 7))
    steps = torch.cat([net.round_sigma((sigma_max ** (1 / 7) + ramp) ** 7), torch.zeros(1)])
    x_next = latents.to(torch.float64) * steps[0]
    for i, (t_cur, t_next) in enumerate(pairwise(steps)):
        x_hat = x_next
        d_cur = (x_hat - net(x_hat, t_cur, None).to(torch.float64)) / t_cur
        x_next = x_hat + (t_next - t_cur) * d_cur
        if i < num_steps - 1:
            d_prime = (x_next - net(x_next, t_next, None).to(torch.float64)) / t_next
            x_next = x_hat + (t_next - t_cur) * (0.5 * d_cur + 0.5 * d_prime)
    return x_next


@pytest.mark.parametrize("sde", [VPSDE(), EDMSDE(), RectifiedFlow()], ids=str)
@pytest.mark.parametrize(
    ("published_loop", "sampler"),
    [
        (sample_euler, Exponential(order=1)),
        (sample_dpmpp_2m, Exponential(order=2, published=True)),
        (lambda D, y, sigmas: edm_sampler(D, y / sigmas[0], len(sigmas) - 1), Heun()),
    ],
    ids=["euler", "dpmpp_2m", "edm"],
)
def test_published_loops_equal_the_samplers(sde: SDE, published_loop, sampler):
    """With the same start; the final denoising replaces their last step to 0."""
    score = mixture(sde)
    D = edm.to_kdiffusion(score)
    sigmas = D.get_sigmas(12).double()
    if isinstance(sampler, Heun):  # the range of EDM's loop
        low, high = max(0.002, D.sigma_min), min(80.0, D.sigma_max)
        sigmas[:-1] = torch.linspace(high ** (1 / 7), low ** (1 / 7), 12).double() ** 7
        sigmas[[0, -2]] = torch.tensor([high, low]).double()
    y = sigmas[0] * torch.randn(5, 2, dtype=torch.float64)
    times = sde.time_at(-sigmas[:-1].log())
    start = sde.alpha(times[0]) * y
    expected = sample(score, None, sampler, times=times, start=start, denoise=True)
    torch.testing.assert_close(published_loop(D, y, sigmas), expected, rtol=0, atol=2e-5)


def test_noise_levels_of_karras():
    D = edm.to_kdiffusion(mixture(EDMSDE()))
    i = torch.arange(10, dtype=torch.float64) / 9
    karras = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    expected = torch.cat([karras, torch.zeros(1)]).float()
    torch.testing.assert_close(D.get_sigmas(10), expected)
    assert torch.equal(D.get_sigmas(10, Karras(rho=7.0)), D.get_sigmas(10))


def test_noise_levels_outside_the_range_are_refused():
    D = edm.to_kdiffusion(mixture(EDMSDE()))
    y = torch.randn(2, 2)
    for sigma in (100.0, float("nan")):
        with pytest.raises(ValueError, match=r"^sigma: "):
            D(y, torch.tensor(sigma))
    with pytest.raises(ValueError, match=r"^class_labels: .*given"):
        D(y, torch.tensor(1.0), torch.zeros(2))
    with pytest.raises(TypeError, match=r"^sigma: "):
        D(y, 1.0)
