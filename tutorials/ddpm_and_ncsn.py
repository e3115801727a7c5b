# %% [markdown]
# # DDPM and NCSN: two diffusions, looked at in steps
#
# DDPM (Ho et al. 2020) and NCSN (Song & Ermon 2019) came with a loss, a sampler and, the first, a
# bound of its own. All of these are the general ones with other arguments. This script says which,
# and checks it: the published formulas are written out beside ours, and the numbers agree.
#
# It takes less than a minute. Read `first_steps.py` before, if noise and scores are new to you.
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
from scoresde.plots import COLOURS, figure, style
from scoresde.samplers import Timesteps, annealed_langevin, ddim, ddpm
from scoresde.training.losses import TableTimes

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## 1. A chain is a diffusion, read at knots
#
# DDPM adds noise in N steps, x_i = √(1−β_i) x_{i−1} + √β_i ε. NCSN has no steps; it has a ladder of
# noise levels σ_1 < … < σ_N. Both are a table of numbers. In continuous time stand the variance
# preserving and the variance exploding SDE, which are two *curves*, α(t) and σ(t). Put the table's
# entry i at the time t_i = i/N, and let a curve run through: that is `DDPM` and `NCSN` here.

# %%
vp, ve = VPSDE(), VESDE(0.01, 5.0)
chain, ladder = vp.discretize(1000), ve.discretize(200)
print(chain, ladder, sep="\n")

i = 500
scale, std = chain.transition(chain.times[i - 1], chain.times[i])
beta = chain.betas[i]
print(f"step {i}: scale {scale:.6f} is √(1−β) = {(1 - beta).sqrt():.6f}")
print(f"          std  {std:.6f} is √β     = {beta.sqrt():.6f}")

# %% [markdown]
# The chain is not the SDE at i/N, but it tends to it: twice as many steps, half the difference.

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
# DDPM draws a step i and asks for the noise, ‖ε̂(x_i, i) − ε‖². NCSN draws a level and asks for the
# score, σ_i² ‖s(x + σ_i ε, σ_i) + ε/σ_i‖², which is the same thing, since s = −ε̂/σ. Ours draws a
# time; `Knots` makes it draw those of the table.

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


models = {"DDPM": new_model(chain), "NCSN": new_model(ladder)}
for name, model in models.items():
    law = TableTimes(model.sde.times)
    with torch.no_grad():
        ours = dsm_loss(model, data, time_sampler=law, generator=torch.Generator().manual_seed(1))
        theirs = published(model, data, torch.Generator().manual_seed(1))
    print(f"{name}: loss {ours:.6f}, as published {theirs:.6f}")
    result = fit(model, data, steps=1000, lr=3e-3, cosine=True, time_sampler=law, progress=False)
    models[name] = result.score

# %% [markdown]
# ## 3. The samplers
#
# Ho et al.'s sampler is the ancestral one whose grid are the knots, Song & Ermon's annealed
# Langevin dynamics is a corrector at every level, with no predictor. And since both models are
# diffusions like any other, every other sampler takes them, too: here DDIM in 20 steps.

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
# ## 4. The same network under the parent
#
# These networks are told λ = log(α/σ), half the log signal-to-noise ratio, and not an index. So
# they do not know that they learned at knots, and may serve the SDE itself.

# %%
parents = {
    "VPSDE": ScoreModel(models["DDPM"].network, vp, models["DDPM"].prediction, by_half_logsnr),
    "VESDE": ScoreModel(models["NCSN"].network, ve, models["NCSN"].prediction, by_half_logsnr),
}

# %% [markdown]
# ## 5. The bound and the density
#
# DDPM's bound is a sum over the chain, −log p(x) ≤ L_0 + L_1 + … + L_N: what the decoder costs,
# every step, and the prior; it bounds the law of the chain's own steps back. The probability flow
# has a law of its own, and tells its density: here under the chain's diffusion and under its
# parent. For the true score all laws are one, the density that the points were drawn from.

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
    told = f"decoder {parts[0]:.3f} + steps {parts[1]:.3f} + prior {parts[2]:.4f}"
    print(f"{name}: bound {sum(parts):.3f} ± {error:.3f} = {told}")
    for each, found in ((model, flow), (parent, above)):
        density = float(-found.log_prob.mean()) / unit
        print(f"      density of the flow {density:.3f} under {type(each.sde).__name__}")
    bounds[name] = bound

# %% [markdown]
# What is the price of steps, and what that of the network? For the true score only the steps cost
# something: a chain that takes each k-th knot has a bound that much above the true density.

# %%
strides = [1, 3, 10, 30, 100]
costs = {}
for stride in strides:
    times, seeded = chain.times[::stride], torch.Generator().manual_seed(3)
    short = discrete_bound(truth, points, times=times, draws=min(stride, 10), generator=seeded)
    costs[len(times)] = float(-short.log_prob.mean()) / unit
    print(f"{len(times):5d} steps, true score: {costs[len(times)]:.3f} bits per dimension")

# %% [markdown]
# ## 6. All of it in one picture

# %%
with style():
    fig = figure(10.0, 6.2)
    axes = fig.subplots(2, 3)
    ax = axes[0, 0]
    for colour, (name, gaps) in zip(COLOURS, differences.items(), strict=False):
        ax.loglog(counts, gaps, "o-", color=colour, label=name)
    ax.loglog(counts, [1 / N for N in counts], ":", color="grey", label="1/N")
    ax.set(title="chains tend to their SDEs", xlabel="steps N")
    ax.legend(fontsize=7)
    ax = axes[1, 0]
    for colour, (name, bound) in zip(COLOURS, bounds.items(), strict=False):
        steps = bound.steps.mean(0) / unit
        ax.semilogy(torch.arange(1, len(steps) + 1) / (len(steps) + 1), steps, color=colour)
        ax.plot([], [], color=colour, label=f"{name}, {len(steps) + 1} steps")
    ax.set(title="terms of the bound, bits/dim", xlabel="time of the step", ylim=(1e-6, 1.0))
    ax.legend(fontsize=7)
    places = (axes[0, 1], axes[0, 2], axes[1, 1])
    for ax, (name, x) in zip(places, drawn.items(), strict=False):
        ax.scatter(*x.T.numpy(), s=2, color=COLOURS[name.startswith("NCSN")], linewidths=0)
        ax.set(title=name, xlim=(-1.8, 1.8), ylim=(-1.5, 2.1), xticks=[], yticks=[])
        ax.set_aspect("equal")
    ax = axes[1, 2]
    ax.semilogx(list(costs), list(costs.values()), "o-", color=COLOURS[0], label="true score")
    ax.axhline(exact, linestyle=":", color="grey", label="true density")
    ax.set(title="bound of a chain, bits/dim", xlabel="steps")
    ax.legend(fontsize=7)
    fig.savefig("ddpm_and_ncsn.png")
print("wrote ddpm_and_ncsn.png")

# %% [markdown]
# ## What to take home
#
# * `VPSDE().discretize(N)`, `DDPM.linear()`, `DDPM.cosine()`, `NCSN.geometric()` and `DDPM(betas)`
#   with a table of yours are SDEs: pass one wherever an SDE goes.
# * The loss, the sampler and the bound of the papers are `Knots(sde.times)`, `Knots()` and
#   `discrete_bound`.
# * A network that was trained elsewhere and is told the index takes `label=by_index`; checkpoints
#   of others come through `scoresde.interop`.
