# %% [markdown]
# # First steps: noise, sampling, and likelihoods
#
# This script introduces diffusion models on points of the plane, where everything can be drawn. It
# takes about a minute on a laptop; run it at once or cell by cell. The only prerequisites are
# Gaussian distributions and gradients.
#
#     python tutorials/first_steps.py

# %%
import math

import torch

from scoresde import (
    MLP,
    VESDE,
    VPSDE,
    EulerMaruyama,
    GaussianMixture,
    ProbabilityFlow,
    ScoreModel,
    by_half_logsnr,
    fit,
    log_likelihood,
    sample,
)
from scoresde.plots import COLORS, figure, style
from scoresde.samplers import ddim, trajectory

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## 1. Data
#
# A mixture of eight Gaussians on a circle. In an application this is your data set, a tensor
# `(n, *event)`: here `(4000, 2)`, for color images `(n, 3, height, width)`. The density of the
# mixture is known exactly, so that everything below can be *checked*.

# %%
angles = 2 * math.pi * torch.arange(8) / 8
means = torch.stack([angles.cos(), angles.sin()], dim=1)
covariances = 0.01 * torch.eye(2).expand(8, 2, 2)
sde = VPSDE()
truth = GaussianMixture(torch.ones(8), means, covariances, sde)
data = truth.sample(4000, generator=generator)

# %% [markdown]
# ## 2. The forward process adds noise gradually
#
# A diffusion scales the data down and adds noise:
#
#     x_t = α(t) x_0 + σ(t) ε,      ε ~ N(0, I),      t from 0 to 1.
#
# It is defined by the two curves α and σ. For the *variance preserving* SDE used here, α falls from
# 1 to nearly 0 and σ rises from 0 to nearly 1. At t = 1 the data cannot be distinguished from pure
# noise.

# %%
for t in (0.0, 0.1, 0.3, 1.0):
    print(f"t = {t:3.1f}:  alpha = {float(sde.alpha(t)):.4f}   sigma = {float(sde.sigma(t)):.4f}")

noise = torch.randn(data.shape, generator=generator)
noised = {t: sde.perturb(data, t, noise) for t in (0.0, 0.1, 0.3, 1.0)}

# %% [markdown]
# ## 3. The score points toward the data
#
# To get from noise to data we need only the *score* ∇ log p_t(x), the direction in which the
# density of noised data increases most. It is equivalent to a denoiser: if x̂ = E[x_0 | x_t] is the
# best estimate of x_0 given x_t, then (Tweedie's formula)
#
#     score(x, t) = (α x̂ − x) / σ².
#
# A network that removes noise therefore gives the score. `fit` trains it: in each step it draws
# data, noise levels and noise, and minimizes the squared error of the predicted noise.

# %%
network = MLP((2,), width=128, depth=3, label_scale=3.0)
model = ScoreModel(network, sde, label=by_half_logsnr)  # any nn.Module can be used
model = fit(model, data, steps=2500, lr=3e-3, cosine=True, progress=False).score

probe = noised[0.3][:1000]
with torch.no_grad():
    error = (model.denoised(probe, 0.3) - truth.denoised(probe, 0.3)).norm(dim=1).mean()
print(f"learned against exact denoiser at t = 0.3: mean distance {float(error):.3f}")

# %% [markdown]
# ## 4. The reverse process and the sampling procedure
#
# Sampling runs time backwards. Two equations lead from noise to data, with the same distributions
# at every time:
#
# * the **reverse SDE** follows the score and adds a little noise in every step (`EulerMaruyama()`);
# * the **probability flow** follows half the score and adds none. It is an ordinary differential
#   equation, which maps each noise to one sample (`ddim()`, `ProbabilityFlow()`).

# %%
by_sde = sample(model, (1000, 2), EulerMaruyama(), steps=500, generator=generator)
by_ddim = sample(model, (1000, 2), ddim(), steps=30, generator=generator)
by_flow = sample(model, (1000, 2), ProbabilityFlow(), generator=generator)
for name, x in {"reverse SDE": by_sde, "DDIM": by_ddim, "flow": by_flow}.items():
    radius = x.norm(dim=1)
    print(
        f"{name:12s} radius {float(radius.mean()):.3f} ± {float(radius.std()):.3f} (data: 1 ± 0.1)"
    )

# %% [markdown]
# ## 5. The density of a point, with its error
#
# The flow is invertible, so it determines the density of any point: the density of its noise, which
# is Gaussian, times the change of volume along the flow (change of variables). `log_likelihood`
# computes it with its errors: `solver_error` of the integration, `standard_error` of random traces
# (0 here: the trace is exact), and `converged` for each point.

# %%
test_points = truth.sample(200, generator=generator)
result = log_likelihood(model, test_points)
print(result)
exact = truth.log_prob(test_points, sde.t_min)
print(
    f"mean log p: model {float(result.log_prob.mean()):.3f}, true density {float(exact.mean()):.3f}"
)

side = torch.linspace(-1.6, 1.6, 41)
grid = torch.cartesian_prod(side, side)
density = log_likelihood(model, grid, tolerance=1e-2).log_prob.exp()
mass = float(density.sum() * (side[1] - side[0]) ** 2)
print(f"the integral of the density over the square is {mass:.3f} (1 if it is all inside)")

# %% [markdown]
# ## 6. DDPM and NCSN are discretized diffusions
#
# The DDPM of Ho et al. is the VP diffusion in N = 1000 steps; the NCSN of Song & Ermon is the VE
# diffusion at a sequence of noise levels. Here they are SDEs with the same loss, samplers and
# likelihoods as all others.

# %%
ddpm, ncsn = VPSDE().discretize(1000), VESDE(sigma_max=5.0).discretize(100)
print(f"DDPM: beta from {float(ddpm.betas[0]):.1e} to {float(ddpm.betas[-1]):.2f}")
print(f"NCSN: sigma from {float(ncsn.sigmas.min()):.2f} to {float(ncsn.sigmas.max()):.2f}")

# %% [markdown]
# ## 7. All of it in one figure

# %%
reverse = trajectory(model, (1000, 2), ddim(), steps=30, generator=generator)
samples = {"reverse SDE": by_sde, "DDIM, 30 steps": by_ddim}
with style():
    fig = figure(9.0, 4.9)
    axes = fig.subplots(2, 4)
    for ax, (t, x) in zip(axes[0], noised.items(), strict=True):
        ax.scatter(*x[:1000].T.numpy(), s=2, color=COLORS[0], linewidths=0)
        ax.set_title(f"forward, t = {t}")
    for ax, (name, x) in zip(axes[1], samples.items(), strict=False):
        ax.scatter(*x.T.numpy(), s=2, color=COLORS[1], linewidths=0)
        ax.set_title(name)
    axes[1, 2].plot(
        *reverse.states[:, :40].permute(2, 0, 1).numpy(), color=COLORS[2], linewidth=0.7
    )
    axes[1, 2].set_title("paths of the flow")
    axes[1, 3].imshow(
        density.reshape(41, 41).T.numpy(),
        origin="lower",
        extent=(-1.6, 1.6, -1.6, 1.6),
        cmap="Blues",
    )
    axes[1, 3].set_title("density")
    for ax in axes.flat:
        ax.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
    axes[1, 3].set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6))
    fig.savefig("first_steps.png")
print("wrote first_steps.png")

# %% [markdown]
# ## What to read next
#
# * The other tutorials in this folder: guidance, restoration, DDPM and NCSN in detail, and how to
#   test your own solver.
# * Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
#   arXiv:2011.13456, which introduced these methods.
