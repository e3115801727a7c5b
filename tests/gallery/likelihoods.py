"""Likelihoods with a bug."""

import math

import torch

from gallery.bug import breaks
from scoresde import VESDE, VPSDE
from scoresde._core.shapes import flatten
from scoresde.likelihood import FlowIntegral
from scoresde.testing.adapters import FunctionMethod

VP = {"sde": VPSDE(), "seed": 0}


def divergence(field, y, probe=None):
    """v(y) and ∇·v, exact or with one probe."""
    with torch.enable_grad():
        leaf = y.detach().requires_grad_()
        value = field(leaf)
        rows = flatten(value)
        if probe is not None:
            (found,) = torch.autograd.grad(value, leaf, probe)
            return value.detach(), flatten(found * probe).sum(1)
        parts = [
            flatten(torch.autograd.grad(rows[:, i].sum(), leaf, retain_graph=True)[0])[:, i]
            for i in range(rows.shape[1])
        ]
    return value.detach(), sum(parts)


def by_the_flow(score, x, *, steps=24, sign=1.0, gain=1.0, stretch=1.0, prior=None, probe=None):
    """log p by the flow dy/dλ = x̂ − y of y = x/α, in ``steps`` steps of Runge and Kutta's.

    log p(x) = log N(x_T; 0, σ_T²) + d (log α_T − log α) + ∫ ∇·(dy/dλ) dλ.
    """
    sde, dtype = score.sde, x.dtype
    score, x = score.double(), x.double()
    d = math.prod(x.shape[1:])
    ends = torch.tensor([sde.t_min, sde.T], dtype=torch.float64)
    low, high = sde.half_logsnr(ends).tolist()
    h = (high - low) / steps

    def slope(half, y):
        t = sde.time_at(torch.tensor(half, dtype=torch.float64))
        return divergence(lambda v: gain * (score.denoised(sde.alpha(t) * v, t) - v), y, probe)

    y, total = x / sde.alpha(ends[0]), 0.0
    for k in range(steps):
        half = low + k * h
        (a, p), (b, q) = slope(half, y), (None, None)
        b, q = slope(half + h / 2, y + h / 2 * a)
        c, r = slope(half + h / 2, y + h / 2 * b)
        e, s = slope(half + h, y + h * c)
        y = y + h / 6 * (a + 2 * b + 2 * c + e)
        total = total + h / 6 * (p + 2 * q + 2 * r + s)
    end = flatten(sde.alpha(ends[1]) * y)
    scale = float(sde.sigma(ends[1])) if prior is None else prior
    terminal = -0.5 * (end / scale).square().sum(1) - d * math.log(scale * math.sqrt(2 * math.pi))
    volume = d * float(sde.log_alpha(ends[1]) - sde.log_alpha(ends[0]))
    return (terminal + stretch * volume + sign * total).to(dtype)


def density(**wrong):
    return FunctionMethod(lambda score, x: by_the_flow(score, x, **wrong))


@breaks("closed form", "the sign of the divergence", FlowIntegral, d=2, **VP)
def minus_the_divergence():
    return density(sign=-1.0)


@breaks("closed form", "½ g² instead of g²", FlowIntegral, d=2, **VP)
def twice_the_flow():
    """The flow with the whole g² s, in its velocity and its divergence."""
    return density(gain=2.0)


@breaks("closed form", "log|det| left out", FlowIntegral, d=2, **VP)
def without_the_volume():
    """log p of x/α taken for that of x: d log α_T is missing."""
    return density(stretch=0.0)


@breaks("closed form", "the prior at another time", FlowIntegral, d=1, sde=VESDE(), seed=0)
def standard_normal():
    return density(prior=1.0)


@breaks("normalization", "bits instead of nats", FlowIntegral, d=1, **VP)
def bits():
    return FunctionMethod(lambda score, x: by_the_flow(score, x) / math.log(2))


@breaks("shapes", "a mean instead of a sum", FlowIntegral, event_shape=(5,), **VP)
def mean_over_dimensions():
    return FunctionMethod(lambda score, x: by_the_flow(score, x) / math.prod(x.shape[1:]))


@breaks("shapes", "a sum over the wrong axes", FlowIntegral, event_shape=(2, 3), **VP)
def last_axis():
    """The sum over the last axis alone."""

    def last(score, x):
        return by_the_flow(score, x)[:, None].expand(x.shape[:2]) / x.shape[1]

    return FunctionMethod(last)


@breaks("batch independence", "shared by a batch", FlowIntegral, slow=True, **VP)
def mean_over_the_batch():
    """Half of log p is the mean over the batch."""

    def shared(score, x):
        log_prob = by_the_flow(score, x)
        return 0.5 * log_prob + 0.5 * log_prob.mean()

    return FunctionMethod(shared)


@breaks("generator", "torch.randn without generator=", FlowIntegral, **VP)
def global_probe():
    return FunctionMethod(
        lambda score, x: by_the_flow(score, x, probe=torch.randn_like(x.double()).sign())
    )


@breaks("budget", "an error of a single step", FlowIntegral, tolerance=1e-3, **VP)
def coarse_with_a_small_error():
    """Six steps, with the error that would be right for many."""

    def coarse(score, x):
        value = by_the_flow(score, x, steps=6)
        return value, torch.full_like(value, 1e-3)

    return FunctionMethod(coarse)


@breaks("off the data", "log p that is clamped", FlowIntegral, distance=5.0, **VP)
def clamped():
    return FunctionMethod(lambda score, x: by_the_flow(score, x).clamp(min=-10.0))


@breaks("failures", "NaN with converged=True", FlowIntegral, **VP)
def nan_replaced():
    return FunctionMethod(lambda score, x: by_the_flow(score, x).nan_to_num())


@breaks("change of variables", "presumes data of size 1", FlowIntegral, slow=True, **VP)
def of_size_one():
    """Points are clipped to the range of images."""
    return FunctionMethod(lambda score, x: by_the_flow(score, x.clamp(-4.0, 4.0)))
