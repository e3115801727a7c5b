# %% [markdown]
# # Restoration: samples from a posterior
#
# A diffusion model is a prior p(x) of data. Given an observation y of a sample, blurred, masked or
# noisy, restoration draws samples from the posterior
#
#     p(x|y) ∝ p(x) p(y|x).
#
# First on points of the plane, where the posterior is known exactly and methods are compared with
# it; then on handwritten digits. It takes about a minute.
#
#     python tutorials/restoration.py

# %%
import math

import torch
from sklearn.datasets import load_digits

from scoresde import (
    VPSDE,
    GaussianMixture,
    ScoreModel,
    UNet,
    by_half_logsnr,
    denoise,
    edm,
    fit,
    inpaint,
    restore,
    super_resolve,
)
from scoresde.inverse_problems import (
    MMPS,
    Observation,
    ParticleSampling,
    PosteriorScoreSampling,
    ddnm,
    twisted_smc,
)
from scoresde.operators import AveragePool, Matrix
from scoresde.plots import COLORS, figure, sample_grid, style

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## 1. A posterior that is known
#
# Eight Gaussians on a circle; of each point only the first coordinate is observed, with noise:
# y = x₁ + 0.1 n. Given y = 0.7, the point is in the upper or in the lower half plane. With which
# probability?

# %%
angles = 2 * math.pi * (torch.arange(8) + 0.5) / 8
means = torch.stack([angles.cos(), angles.sin()], dim=1)
weights = torch.tensor([3.0, 1, 1, 1, 1, 1, 1, 1])  # the one at the upper right is more likely
prior = GaussianMixture(weights, means, 0.02 * torch.eye(2).expand(8, 2, 2), VPSDE())

operator, y = Matrix(torch.tensor([[1.0, 0.0]])), torch.tensor([[0.7]])
seen = Observation(operator, y, noise_std=0.1)
exact = prior.posterior(operator, y[0], noise_std=0.1)
upper = float(exact.sample(20000, generator=generator)[:, 1].gt(0).double().mean())
print(f"exact posterior:       {upper:.2f} of the samples are above")

# %% [markdown]
# `restore` draws from it. The default `method` is `PosteriorScoreSampling(MMPS)`; others are DDNM,
# ΠGDM, DPS, …, each with the error of its approximation of p(x₀|x_t). `ParticleSampling` corrects
# the error by importance weights, and is exact as the number of particles grows.

# %%
methods = {
    "DDNM": PosteriorScoreSampling(ddnm),
    "MMPS": PosteriorScoreSampling(MMPS),
    "particles": ParticleSampling(MMPS, particles=1000),
}
drawn = {}
for name, method in methods.items():
    drawn[name] = restore(prior, seen, (2,), n=1000, method=method, generator=generator)[0]
    above = float(drawn[name][:, 1].gt(0).double().mean())
    print(f"{name:22s} {above:.2f}")

# %% [markdown]
# Particles also estimate the evidence log p(y), which compares models; `print` shows their
# effective sample sizes.

# %%
cloud = twisted_smc(MMPS(prior, seen), (1000, 2), generator=generator)
print(cloud)

# %% [markdown]
# ## 2. Digits
#
# The same with a network, trained on 1500 digits in half a minute. The other digits are held out.

# %%
digits = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 8 - 1
digits = digits[torch.randperm(len(digits), generator=generator)]
train, truth = digits[:1500], digits[1500:1508]
network = UNet(1, 8, multipliers=(1,), blocks=1, attention=(), label_scale=3.0)
model = ScoreModel(network, VPSDE(), edm(float(train.std())), by_half_logsnr)
model = fit(model, train, steps=800, batch_size=64, lr=3e-3, cosine=True, progress=False).score

# %% [markdown]
# One call each. `n` is the number of samples for each observation: their differences show the
# uncertainty.

# %%
mask = torch.arange(8) < 4  # the left half is known; (8,) expands to (1, 8, 8)
small = AveragePool(2)(truth)
noisy = truth + 0.5 * torch.randn(truth.shape, generator=generator)
restored = {
    "inpainted": inpaint(model, truth, mask, n=8, generator=generator),
    "enlarged": super_resolve(model, small, 2, n=8, generator=generator),
    "denoised": denoise(model, noisy, 0.5, n=8, generator=generator),
}


def psnr(x: torch.Tensor) -> float:
    return 10 * math.log10(4 / float((x - truth).square().mean()))


for name, x in restored.items():
    print(f"{name}: a sample {psnr(x[:, 0]):.1f} dB, the mean of eight {psnr(x.mean(1)):.1f} dB")
print(f"the noisy ones themselves: {psnr(noisy):.1f} dB")
assert torch.equal(restored["inpainted"][:, 0][..., mask], truth[..., mask])  # exactly

# %% [markdown]
# ## 3. The picture

# %%
views = {
    "inpainted": truth.masked_fill(~mask, torch.nan),
    "enlarged": small.repeat_interleave(2, -1).repeat_interleave(2, -2),
    "denoised": noisy,
}
with style():
    fig = figure(10.0, 5.2)
    plane, pictures = fig.subfigures(2, 1, height_ratios=(1.15, 1))
    clouds = {"exact": exact.sample(1000, generator=generator)} | drawn
    for ax, (name, x) in zip(plane.subplots(1, 4), clouds.items(), strict=True):
        ax.scatter(*means.T, s=20 * weights, color="#dddddd")
        ax.scatter(*x.T, s=2, color=COLORS[1], linewidths=0)
        ax.axvline(0.7, color="#999999", linewidth=0.7)
        ax.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), xticks=[], yticks=[], aspect="equal")
        ax.set_title(name)
    for ax, (name, x) in zip(pictures.subplots(1, 3), restored.items(), strict=True):
        rows = [truth, views[name], x[:, 0], x[:, 1], x.mean(1)]
        sample_grid(torch.cat(rows), columns=8, cmap="gray_r", title=name, ax=ax)
        ax.set_yticks([4.5 + 9 * k for k in range(5)], ["truth", "seen", "sample", "other", "mean"])
        ax.tick_params(axis="y", length=0)
    fig.savefig("restoration.png")
print("wrote restoration.png")
