# %% [markdown]
# # DDPM and NCSN: two discretized diffusions
#
# DDPM (Ho et al. 2020) and NCSN (Song & Ermon 2019) were published with their own loss and sampler,
# and DDPM with its own likelihood bound. All of these are special cases of the general ones. This
# script shows their arguments and compares them with the published formulas: the numbers agree.
#
# It takes less than a minute. Read `first_steps.py` first if you are new to noise and scores.
#
#     python tutorials/ddpm_and_ncsn.py

# %%
import math

import torch

from scoresde import (
    MLP,
    NCSN,
    VESDE,
    VPSDE,
    GaussianMixture,
    ScoreModel,
    by_half_logsnr,
    dsm_loss,
    edm,
    fit,
    log_likelihood,
    sample,
)
from scoresde.likelihood import discrete_bound
from scoresde.plots import COLORS, figure, style
from scoresde.samplers import Timesteps, annealed_langevin, ddim, ddpm
from scoresde.training.losses import TableTimes

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## 1. A Markov chain is a diffusion at discrete times
#
# DDPM adds noise in N steps, x_i = √(1−β_i) x_{i−1} + √β_i ε. NCSN has no steps, but noise levels
# σ_1 < … < σ_N. Both are tables of numbers. Their counterparts in continuous time are the variance
# preserving and the variance exploding SDE, which are two *curves*, α(t) and σ(t). `DDPM` and
# `NCSN` are interpolations of the tables: entry i is the value at the time t_i = i/N.

# %%
vp, ve = VPSDE(), VESDE(0.01, 5.0)
chain, levels = vp.discretize(1000), ve.discretize(200)
print(chain, levels, sep="\n")

i = 500
scale, std = chain.transition(chain.times[i - 1], chain.times[i])
beta = chain.betas[i]
print(f"step {i}: scale {scale:.6f} is √(1−β) = {(1 - beta).sqrt():.6f}")
print(f"          std  {std:.6f} is √β     = {beta.sqrt():.6f}")

# %% [markdown]
# The chain differs from the SDE at i/N, but converges to it: with twice as many steps the
# difference is half as large.

# %%
counts = [30, 100, 300, 1000, 3000]
t = torch.linspace(0.1, 0.95, 50, dtype=torch.float64)
differences = {"DDPM and VP, max |Δα|": [], "NCSN and VE, max |Δ log σ|": []}
for N in counts:
    one, other = vp.discretize(N), ve.discretize(N)
    gap = (one.alpha(one.times) - vp.alpha(one.times)).abs().max()
    differences["DDPM and VP, max |Δα|"].append(float(gap))
    gap = (other.sigma(t) / ve.sigma(t)).log().abs().max()
    differences["NCSN and VE, max |Δ log σ|"].append(float(gap))
for name, gaps in differences.items():
    order = math.log(gaps[-2] / gaps[-1]) / math.log(counts[-1] / counts[-2])
    print(f"{name}: {gaps[-2]:.1e} at N = {counts[-2]}, falls like N^-{order:.2f}")

# %% [markdown]
# ## 2. The losses
#
# DDPM draws a step i and predicts the noise, ‖ε̂(x_i, i) − ε‖². NCSN draws a level and predicts the
# score, σ_i² ‖s(x + σ_i ε, σ_i) + ε/σ_i‖², which is the same loss, since s = −ε̂/σ. `dsm_loss`
# draws a time, with `TableTimes` one of the table.

# %%
angles = 2 * math.pi * torch.arange(3) / 3
means = torch.stack([angles.sin(), angles.cos()], dim=1)
truth = GaussianMixture(torch.ones(3), means, 0.2**2 * torch.eye(2).expand(3, 2, 2), chain)
data = truth.sample(4000, generator=generator)


def new_model(sde):
    network = MLP((2,), width=96, depth=2, label_scale=3.0)
    return ScoreModel(network, sde, edm(float(data.std())), label=by_half_logsnr)


def published(model, x0, draws):
    """The losses of Ho et al., eq. 14, and of Song & Ermon, eqs. 5 and 6, from their tables."""
    sde, n = model.sde, len(x0)
    step = (torch.rand(n, generator=draws, dtype=torch.float64) * len(sde.times)).long()
    noise = torch.randn(x0.shape, generator=draws)
    times = sde.times[step].float()
    if isinstance(sde, NCSN):
        sigma = sde.sigmas[step].float()[:, None]
        return (sigma**2 * (model(x0 + sigma * noise, times) + noise / sigma) ** 2).mean()
    bar = torch.cumprod(1 - sde.betas, 0)[step].float()[:, None]
    return ((model.noise(bar.sqrt() * x0 + (1 - bar).sqrt() * noise, times) - noise) ** 2).mean()


models = {"DDPM": new_model(chain), "NCSN": new_model(levels)}
for name, model in models.items():
    times = TableTimes(model.sde.times)
    with torch.no_grad():
        ours = dsm_loss(model, data, time_sampler=times, generator=torch.Generator().manual_seed(1))
        theirs = published(model, data, torch.Generator().manual_seed(1))
    print(f"{name}: loss {ours:.6f}, as published {theirs:.6f}")
    result = fit(model, data, steps=1000, lr=3e-3, cosine=True, time_sampler=times, progress=False)
    models[name] = result.score

# %% [markdown]
# ## 3. The samplers
#
# The sampler of Ho et al. is the ancestral one on the grid of timesteps. The annealed Langevin
# dynamics of Song & Ermon is a corrector at every level, without a predictor. Every other sampler
# can be used with both models too: here DDIM in 20 steps.

# %%
count = 500
drawn = {
    "DDPM, ancestral, 1000 steps": sample(
        models["DDPM"], (count, 2), ddpm(grid=Timesteps(), steps=999), generator=generator
    ),
    "NCSN, Langevin, 5 x 200": sample(
        models["NCSN"],
        (count, 2),
        annealed_langevin(0.2, corrections=5, grid=Timesteps(), steps=199),
        generator=generator,
    ),
    "DDPM, DDIM, 20 steps": sample(
        models["DDPM"], (count, 2), ddim(), steps=20, generator=generator
    ),
    "NCSN, DDIM, 20 steps": sample(
        models["NCSN"], (count, 2), ddim(), steps=20, generator=generator
    ),
}
for name, x in ({"data": data} | drawn).items():
    radius = x.norm(dim=1)
    print(f"{name:30s} radius {radius.mean():.3f} ± {radius.std():.3f}")

# %% [markdown]
# ## 4. The same network with the continuous SDE
#
# The label of these networks is λ = log(α/σ), half the log signal-to-noise ratio, not an index.
# They can therefore be used with the continuous SDE, although they were trained at discrete times.

# %%
parents = {
    "VPSDE": ScoreModel(models["DDPM"].network, vp, models["DDPM"].prediction, by_half_logsnr),
    "VESDE": ScoreModel(models["NCSN"].network, ve, models["NCSN"].prediction, by_half_logsnr),
}

# %% [markdown]
# ## 5. The bound and the density
#
# DDPM's bound is a sum over the chain, −log p(x) ≤ L_0 + L_1 + … + L_N: the terms of the decoder,
# of every step, and of the prior. It bounds the density of the chain's own reverse steps. The
# samples of the probability flow have another distribution, whose density is computed here for the
# chain's diffusion and for the continuous SDE. For the true score all of them agree with the
# density that the points were drawn from.

# %%
points = truth.sample(100, generator=generator)
unit = 2 * math.log(2)  # nats in a bit per dimension, for two of them
exact = float(-truth.log_prob(points, 0.0).mean()) / unit
print(f"the true density: {exact:.3f} bits per dimension")
bounds = {}
for (name, model), parent in zip(models.items(), parents.values(), strict=True):
    bound = discrete_bound(model, points, draws=2, generator=torch.Generator().manual_seed(2))
    error = float(bound.standard_error.square().sum().sqrt()) / len(points) / unit
    flow, above = (log_likelihood(each, points, t_min=model.sde.t_min) for each in (model, parent))
    assert bool(flow.converged.all() & above.converged.all())
    parts = [float(part.mean()) / unit for part in (bound.decoder, bound.steps.sum(1), bound.prior)]
    terms = f"decoder {parts[0]:.3f} + steps {parts[1]:.3f} + prior {parts[2]:.4f}"
    print(f"{name}: bound {sum(parts):.3f} ± {error:.3f} = {terms}")
    for each, found in ((model, flow), (parent, above)):
        density = float(-found.log_prob.mean()) / unit
        print(f"      density of the flow {density:.3f} under {type(each.sde).__name__}")
    bounds[name] = bound

# %% [markdown]
# How much of the bound is due to the discretization, and how much to the network? With the true
# score only the discretization remains: the bound of a chain with every k-th timestep exceeds the
# true density by this much.

# %%
strides = [1, 3, 10, 30, 100]
costs = {}
for stride in strides:
    times, draws = chain.times[::stride], torch.Generator().manual_seed(3)
    short = discrete_bound(truth, points, times=times, draws=min(stride, 10), generator=draws)
    costs[len(times)] = float(-short.log_prob.mean()) / unit
    print(f"{len(times):5d} steps, true score: {costs[len(times)]:.3f} bits per dimension")

# %% [markdown]
# ## 6. All of it in one figure

# %%
with style():
    fig = figure(10.0, 6.2)
    axes = fig.subplots(2, 3)
    ax = axes[0, 0]
    for color, (name, gaps) in zip(COLORS, differences.items(), strict=False):
        ax.loglog(counts, gaps, "o-", color=color, label=name)
    ax.loglog(counts, [1 / N for N in counts], ":", color="gray", label="1/N")
    ax.set(title="chains converge to their SDEs", xlabel="steps N")
    ax.legend(fontsize=7)
    ax = axes[1, 0]
    for color, (name, bound) in zip(COLORS, bounds.items(), strict=False):
        steps = bound.steps.mean(0) / unit
        ax.semilogy(torch.arange(1, len(steps) + 1) / (len(steps) + 1), steps, color=color)
        ax.plot([], [], color=color, label=f"{name}, {len(steps) + 1} steps")
    ax.set(title="terms of the bound, bits/dim", xlabel="time of the step", ylim=(1e-6, 1.0))
    ax.legend(fontsize=7)
    panels = (axes[0, 1], axes[0, 2], axes[1, 1])
    for ax, (name, x) in zip(panels, drawn.items(), strict=False):
        ax.scatter(*x.T.numpy(), s=2, color=COLORS[name.startswith("NCSN")], linewidths=0)
        ax.set(title=name, xlim=(-1.8, 1.8), ylim=(-1.5, 2.1), xticks=[], yticks=[])
        ax.set_aspect("equal")
    ax = axes[1, 2]
    ax.semilogx(list(costs), list(costs.values()), "o-", color=COLORS[0], label="true score")
    ax.axhline(exact, linestyle=":", color="gray", label="true density")
    ax.set(title="bound of a chain, bits/dim", xlabel="steps")
    ax.legend(fontsize=7)
    fig.savefig("ddpm_and_ncsn.png")
print("wrote ddpm_and_ncsn.png")

# %% [markdown]
# ## Summary
#
# * `VPSDE().discretize(N)`, `DDPM.linear()`, `DDPM.cosine()`, `NCSN.geometric()` and `DDPM(betas)`
#   with your own table are SDEs and can be passed wherever an SDE is expected.
# * The loss, the sampler and the bound of the papers need `TableTimes(sde.times)`, `Timesteps()`
#   and `discrete_bound`.
# * A network that was trained elsewhere with an index as its label needs `label=by_index`;
#   checkpoints of other libraries are loaded by `scoresde.interop`.
