"""Samplers with a bug."""

import math
from dataclasses import dataclass, replace

import torch

from gallery.bug import breaks
from scoresde import VPSDE
from scoresde._core.shapes import expand, flatten
from scoresde.samplers import (
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Exponential,
    Heun,
    Sampler,
)
from scoresde.samplers.base import noise_level_at
from scoresde.testing.adapters import FunctionSampler

VP = {"sde": VPSDE()}


def third():
    return Exponential(order=3)


@breaks("convergence order", "a missing factor 2: order 2 instead of 3", third, **VP)
@dataclass(frozen=True)
class Published3M(Exponential):
    """DPM-Solver++(3M) as published: half the weight of the second difference."""

    order: int = 3
    published: bool = True
    convergence_order = 3.0


def ddim():
    return Exponential(order=1)


@breaks(
    "convergence order", "slopes at the wrong times", lambda: Exponential(order=2), slow=True, **VP
)
class RoundedTimes(Exponential):
    """The network gets the nearest of 50 times, the coefficients the exact time."""

    def read(self, score, x, t, here):
        return super().read(score, x, (t * 50).round() / 50, here)


@breaks("convergence order", "slopes at the wrong times", Heun, slow=True, **VP)
class HeunAtOneTime(Heun):
    """The second slope is taken at the first time."""

    def step(self, score, x, t, s, state, noise):
        here, there = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
        gain, factor = there.alpha * (there.ratio - here.ratio), there.alpha / here.alpha
        slope = score.noise(x, t)
        later = score.noise((x * factor + gain * slope) / factor, t)
        return x * factor + 0.5 * gain * (slope + later), state


@dataclass(frozen=True)
class Rosenbrock(Sampler):
    """A second-order multistep method for u = x/W, W = √(α² + σ²), in a = ln(σ/α).

        u_s = u_t + ∫ w(a) f da,    w = e^a/(1 + e^{2a}),    f = (W/σ)(α u/W − x̂).

    References:
        Zheng et al., *DPM-Solver-v3*, 2023, arXiv:2310.13268.
    """

    deterministic = True
    convergence_order = 2.0

    def gain(self, here, there):
        return math.hypot(there.alpha, there.sigma)

    def step(self, score, x, t, s, state, noise):
        here, there = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
        before, after = (math.hypot(p.alpha, p.sigma) for p in (here, there))
        f = before / here.sigma * (here.alpha * x / before**2 - score.denoised(x, t))
        a, b = -here.half_logsnr, -there.half_logsnr
        nodes = torch.linspace(a, b, 65, dtype=torch.float64)
        weight = torch.exp(nodes) / (1 + torch.exp(2 * nodes))
        slope = 0 * f if state is None else (f - state[1]) / (a - state[0])
        integral = torch.trapezoid(weight, nodes) * f
        integral = integral + torch.trapezoid(weight * (nodes - a), nodes) * slope
        return after / before * x + self.gain(here, there) * integral, (a, f)


@breaks("convergence order", "declared is 2", Rosenbrock, slow=True, **VP)
class RosenbrockOfTwoTimes(Rosenbrock):
    """√(α_s² + σ_t²) for √(α_s² + σ_s²), as in a published loop: order 1."""

    def gain(self, here, there):
        return math.hypot(there.alpha, here.sigma)


def euler(weight=0.5, sign=1.0):
    def step(score, x, t, s, noise):
        sde = score.sde
        return x + sign * (s - t) * (sde.drift(x, t) - weight * sde.diffusion(t) ** 2 * score(x, t))

    return FunctionSampler(step, deterministic=True)


@breaks("convergence", "1 where the flow has ½", euler, **VP)
def flow_of_the_reverse_sde():
    """The probability flow with the weight 1 of the reverse SDE."""
    return euler(weight=1.0)


@breaks("convergence", "a sign or factor in the weight of the score", euler, **VP)
def forward_in_time():
    """The step goes to T instead of 0: dt with the wrong sign."""
    return euler(sign=-1.0)


def maruyama(weight=1.0, std=lambda g, h: g * h.sqrt()):
    def step(score, x, t, s, noise):
        sde, h = score.sde, t - s
        g = sde.diffusion(t)
        return x - h * (sde.drift(x, t) - weight * g**2 * score(x, t)) + std(g, h) * noise(x)

    return FunctionSampler(step)


@breaks("Gaussian data", "a factor √2 or ½", maruyama, **VP)
def half_the_score():
    """The reverse SDE with the weight ½ of the flow."""
    return maruyama(weight=0.5)


@breaks("Gaussian data", "g instead of g²", maruyama, **VP)
def squared_noise():
    """Noise g² √h z."""
    return maruyama(std=lambda g, h: g**2 * h.sqrt())


@breaks("Gaussian data", "in the noise", maruyama, **VP)
def noise_of_time():
    """Noise g h z instead of g √h z."""
    return maruyama(std=lambda g, h: g * h)


@breaks("Gaussian data", "a coefficient of another time", Ancestral, **VP)
class NoiseOfT(Sampler):
    """The posterior's mean with the noise that was there at t."""

    def step(self, score, x, t, s, state, noise):
        scale, std = score.sde.transition(s, t)
        mean = (x + std**2 * score(x, t)) / scale
        return mean + score.sde.sigma(t) * noise(x), state


@breaks("Gaussian data", "x̂ and ε̂ mixed up", ddim, **VP)
class MixedUp(Sampler):
    """DDIM that adds the noise to the state and not to x̂."""

    def step(self, score, x, t, s, state, noise):
        return score.sde.perturb(x, s, score.noise(x, t)), state


@breaks("data distribution", "too much or too little noise", Ancestral, seed=0, **VP)
class NoiseOnTop(Ancestral):
    """A little more noise in each step blurs the modes."""

    def step(self, score, x, t, s, state, noise):
        x, state = super().step(score, x, t, s, state, noise)
        return x + 0.25 * score.sde.sigma(t) * noise(x), state


@breaks("invariance", "√ε instead of √(2ε)", AnnealedLangevin, seed=0, **VP)
class ColdLangevin(AnnealedLangevin):
    def step(self, score, x, t, s, state, noise):
        size = 2 * (self.snr * score.sde.sigma(t)) ** 2
        return x + size * score(x, t) + size.sqrt() * noise(x), state


@breaks("generator", "torch.randn without generator=", Ancestral, **VP)
class GlobalNoise(Ancestral):
    def step(self, score, x, t, s, state, noise):
        return super().step(score, x, t, s, state, torch.randn_like)


@breaks("Gaussian data", "noise is not drawn by noise(x) alone", maruyama, **VP)
def noise_of_its_own():
    """Too little noise, drawn from the global generator."""

    def step(score, x, t, s, noise):
        sde, h = score.sde, t - s
        drift = sde.drift(x, t) - sde.diffusion(t) ** 2 * score(x, t)
        return x - h * drift + sde.diffusion(t) * h * torch.randn_like(x)

    return FunctionSampler(step)


@breaks("generator", "torch.manual_seed inside", Ancestral, **VP)
class Reseeding(Ancestral):
    def step(self, score, x, t, s, state, noise):
        torch.manual_seed(0)
        return super().step(score, x, t, s, state, torch.randn_like)


@breaks("generator", "noise drawn where none is declared", ddim, **VP)
def not_deterministic():
    return replace(maruyama(), deterministic=True)


@breaks("batch independence", "averaged over the batch", AnnealedLangevin, **VP)
class BatchNorm(AnnealedLangevin):
    """The corrector of the official code: norms averaged over the batch."""

    def step(self, score, x, t, s, state, noise):
        value, z = score(x, t), noise(x)
        size = (
            2 * (self.snr * flatten(z).norm(dim=1).mean() / flatten(value).norm(dim=1).mean()) ** 2
        )
        return x + size * value + (2 * size).sqrt() * z, state


@breaks("shapes", "[:, None, None, None]", EulerMaruyama, **VP)
class OnlyImages(Sampler):
    def step(self, score, x, t, s, state, noise):
        g = score.sde.diffusion(t).expand(len(x))[:, None, None, None]
        drift = score.sde.drift(x, t) - g**2 * score(x, t)
        return x + (s - t) * drift + g * (t - s).sqrt() * noise(x), state


@breaks("shapes", "0/0 in the first", third, **VP)
class ZeroOverZero(Exponential):
    """A second-order step from the first step on: 0/0."""

    def init(self, score, x, times):
        return None

    def step(self, score, x, t, s, state, noise):
        here, there, value = (
            noise_level_at(score.sde, t),
            noise_level_at(score.sde, s),
            score.denoised(x, t),
        )
        before, last = (here.half_logsnr, value) if state is None else state
        h = torch.tensor(there.half_logsnr - here.half_logsnr, dtype=torch.float64)
        slope = (value - last) / (here.half_logsnr - torch.tensor(before, dtype=torch.float64))
        x = there.sigma / here.sigma * x + there.alpha * -torch.expm1(-h) * (
            value + 0.5 * h * slope
        )
        return x, (here.half_logsnr, value)


@breaks("endpoints", "a division by σ(0) = 0", ddim, **VP)
class DividingBySigma(Sampler):
    """DPM-Solver's r = h_last/h with λ = ∞ at the end."""

    def step(self, score, x, t, s, state, noise):
        sde = score.sde
        h = (sde.alpha(s).log() - sde.sigma(s).log()) - (sde.alpha(t).log() - sde.sigma(t).log())
        factor = sde.sigma(s) / sde.sigma(t) * torch.exp(0 * h)
        return factor * x - expand(sde.alpha(s) * torch.expm1(-h), x) * score.denoised(x, t), state


@breaks("grid", "N instead of N + 1 times", EulerMaruyama)
class OneTimeShort(EulerMaruyama):
    def times(self, sde, steps, std=1.0):
        return torch.linspace(sde.T, sde.t_min, steps, dtype=torch.float64)


@breaks("grid", "time that rises", EulerMaruyama)
class RisingTime(EulerMaruyama):
    def times(self, sde, steps, std=1.0):
        return super().times(sde, steps, std).flip(0)


@breaks("inverse", "coefficients that presume s < t", ddim, seed=0, **VP)
class OneDirectionOnly(Sampler):
    """DDIM with |h|."""

    deterministic = True

    def step(self, score, x, t, s, state, noise):
        here, there = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
        gap = -abs(here.ratio - there.ratio)
        x = there.alpha / here.alpha * x + there.alpha * gap * score.noise(x, t)
        return x, state


@breaks("chunks", "a norm or mean over the batch", EulerMaruyama, **VP)
class CenteredScore(EulerMaruyama):
    """A step that shares a mean over those rows that the network sees together."""

    def step(self, score, x, t, s, state, noise):
        def shared(part):
            return score(part, t) - 0.01 * score(part, t).mean(0, keepdim=True)

        sde, h = score.sde, t - s
        value = torch.cat([shared(part) for part in x.split(getattr(score, "batch_size", len(x)))])
        g = sde.diffusion(t)
        return x - h * (sde.drift(x, t) - g**2 * value) + g * h.sqrt() * noise(x), state


@breaks("grid", "expected a grid for at least one", EulerMaruyama)
class NoGrid(EulerMaruyama):
    """A grid that refuses every SDE."""

    def times(self, sde, steps, std=1.0):
        raise ValueError("sde: expected another SDE")


@breaks("double precision", "states or coefficients computed in float32", ddim, **VP)
class Float32Inside(Exponential):
    """The state is rounded to float32 in each step, and returned in float64."""

    order: int = 1

    def step(self, score, x, t, s, state, noise):
        x, state = super().step(score, x.float().double(), t, s, state, noise)
        return x, state


@breaks("double precision", "states or coefficients computed in float32", ddim, **VP)
class Float32Coefficients(Sampler):
    """DDIM with α and σ in float32."""

    deterministic = True

    def step(self, score, x, t, s, state, noise):
        sde = score.sde
        alpha, sigma = sde.alpha(s).float().double(), sde.sigma(s).float().double()
        return alpha * score.denoised(x, t) + sigma * score.noise(x, t), state


def wavy(std=1.0):
    """A reverse SDE that is not affine on Gaussian data: its x̂ has small ripples."""

    def step(score, x, t, s, noise):
        scale, b = score.sde.transition(s, t)
        clean = score.denoised(x, t)
        clean = clean + 0.01 * torch.sin(5 * clean)
        alpha, sigma = score.sde.alpha(t), score.sde.sigma(t)
        mean = (x - b**2 * (x - alpha * clean) / sigma**2) / scale
        return mean + std * b * score.sde.sigma(s) / sigma * noise(x)

    return FunctionSampler(step)


@breaks("Gaussian data", "a factor √2 or ½ in the noise", wavy, **VP)
def half_the_noise():
    """Not affine, with half the noise."""
    return wavy(std=0.5)


@breaks("endpoints", "changes the state by", ddim, **VP)
class JumpAtTheEnd(Exponential):
    """The step to t = 0 adds a constant."""

    order: int = 1

    def step(self, score, x, t, s, state, noise):
        x, state = super().step(score, x, t, s, state, noise)
        return x + 3 * float(s == 0), state
