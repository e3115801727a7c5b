# %% [markdown]
# # Check your solver: a wrong coefficient that no picture shows
#
# You have written a sampler. Its pictures look fine, and better with more steps. Is it correct?
# This script implements DPM-Solver++(3M) as in many code bases, finds that it is not of third
# order, finds the coefficient, and corrects it. It takes less than a minute; run it as a whole or
# cell by cell.
#
#     python tutorials/check_your_solver.py
#
# It needs hypothesis: `pip install 'scoresde[testing]'`.

# %%
import math
from dataclasses import dataclass

import torch

from scoresde import VPSDE, GaussianMixture, sample
from scoresde.samplers import Sampler, UniformLogSNR
from scoresde.samplers.base import noise_level_at
from scoresde.testing import BrokenPropertyError, check_sampler, checks
from scoresde.testing.adapters import FunctionSampler

# %% [markdown]
# ## 1. A step, and what it declares
#
# In the half log-SNR λ = log α − log σ the probability flow is nearly linear. From t to s, with
# h = λ_s − λ_t > 0,
#
#     x_s = (σ_s/σ_t) x_t + α_s ∫₀ʰ e^{r−h} x̂(λ_t + r) dr.
#
# The denoised x̂ is not known between t and s. A first-order step takes it as constant: this is
# DDIM. An adapter makes a sampler of the plain function, and declares its properties: no noise, and
# errors that decrease like 1/N.


# %%
def ddim(score, x, t, s, noise):
    here, there = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
    h = there.half_logsnr - here.half_logsnr
    clean = score.denoised(x, t)
    return there.sigma / here.sigma * x - there.alpha * math.expm1(-h) * clean


check_sampler(FunctionSampler(ddim, convergence_order=1, deterministic=True))
print("DDIM has all properties of samplers")

# %% [markdown]
# ## 2. Third order
#
# Now x̂ is replaced by the parabola through its last three values. With the slope D₁ and the
# curvature D₂ from divided differences, the step reads, in the authors' code and its many copies,
#
#     x_s = (σ_s/σ_t) x_t − α_s (e^{−h} − 1) x̂ + α_s ((e^{−h} − 1)/h + 1) D₁
#           − α_s ((e^{−h} − 1 + h)/h² − ½) D₂.
#
# A multistep method is a `Sampler`: a small frozen class, whose `step` also gets and returns a
# history, here the last two λ and x̂. It declares `convergence_order = 3`.


# %%
@dataclass(frozen=True)
class ThirdOrder(Sampler):
    """DPM-Solver++(3M) as published."""

    deterministic = True
    convergence_order = 3.0

    def times(self, sde, steps, std=1.0):
        return UniformLogSNR()(sde, steps, std)

    def init(self, score, x, t):
        return ()

    def curvature(self, differences, distance):
        return differences / distance

    def step(self, score, x, t, s, state, noise):
        here, there = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
        values = ((here.half_logsnr, score.denoised(x, t)), *state)[:3]
        h = there.half_logsnr - here.half_logsnr
        m0 = values[0][1]
        x = there.sigma / here.sigma * x - there.alpha * math.expm1(-h) * m0
        if len(values) > 1:
            r0, m1 = (values[0][0] - values[1][0]) / h, values[1][1]
            slope = (m0 - m1) / r0
            if len(values) > 2:
                r1, m2 = (values[1][0] - values[2][0]) / h, values[2][1]
                change = slope - (m1 - m2) / r1
                bend = self.curvature(change, r0 + r1)
                slope = slope + r0 / (r0 + r1) * change
                x = x - there.alpha * ((math.expm1(-h) + h) / h**2 - 0.5) * bend
            x = x + there.alpha * (math.expm1(-h) / h + 1) * slope
        return x, values[:2]


# %% [markdown]
# ## 3. What samples show
#
# Two modes, 50 steps: their means and widths are correct to two digits. Nothing is suspicious.

# %%
means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.04)
data = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
generator = torch.Generator().manual_seed(0)
x = sample(data, (4000, 1), ThirdOrder(), steps=50, generator=generator)
left, right = x[x < 0], x[x > 0]
print(f"modes at {float(left.mean()):.2f} and {float(right.mean()):.2f}, expected -1 and 1")
print(f"widths {float(left.std()):.2f} and {float(right.std()):.2f}, expected 0.2")

# %% [markdown]
# ## 4. What the properties show
#
# `check_sampler` tests a sampler for what it declares. On a mixture of two modes scipy computes the
# end of the probability flow to eleven digits, so that the order of convergence can be measured.
# All properties hold but this one.

# %%
try:
    check_sampler(ThirdOrder(), only="convergence order")
    raise SystemExit("the wrong coefficient was not found")
except BrokenPropertyError as broken:
    print(broken)

# %% [markdown]
# The report gives the property, the case, the errors for several numbers of steps, the usual causes
# and a line of code that reproduces the failure. The order is 2, declared is 3: "a wrong weight of
# the highest difference (a missing factor 2 …)".
#
# ## 5. The coefficient
#
# Consider the highest difference. With u = r/h the parabola is
#
#     x̂(λ_t + r) = x̂ + D₁ u + ½ D₂ u²,        D₂ = h² x̂″,
#
# and its last term contributes α_s h ∫₀¹ e^{−h(1−u)} ½ u² du · D₂ = −α_s ((e^{−h} − 1 + h)/h² − ½)
# D₂. That is the published weight. Now D₂: the first differences D₁₀ = h x̂′ at the middle of the
# last step and D₁₁ at the middle of the one before are ½ (r₀ + r₁) h apart, so that
#
#     D₂ = 2 (D₁₀ − D₁₁)/(r₀ + r₁).
#
# The single-step method of the authors' code has the factor 2; the multistep one lacks it.


# %%
@dataclass(frozen=True)
class Corrected(ThirdOrder):
    """With the factor 2."""

    def curvature(self, differences, distance):
        return 2 * differences / distance


report = check_sampler(Corrected(), only="convergence order")
print(f"with the factor 2 the order is {report.measured['convergence order']:.2f}")

# %% [markdown]
# ## 6. All other properties
#
# The others cover the mistakes of samplers of all kinds: shapes, seeds, batch independence, the
# endpoints, the distribution of the samples.

# %%
for name, check in checks(Corrected()):
    check()
    print(f"passed  {name}")

# %% [markdown]
# ## What to read next
#
# * In your own tests: `@parametrize_with_checks([Corrected(), …])` makes one test per property.
# * From a shell: `scoresde check my_module:Corrected`.
# * For SDEs, scores, networks, ODE solvers, divergence estimators and likelihoods: `check_sde`,
#   `check_score`, `check_network`, `check_solver`, `check_trace`, `check_likelihood`;
#   `scoresde.testing.adapters` takes plain functions, objects of torchsde and schedulers of
#   diffusers.
# * Lu et al., *DPM-Solver++*, 2022, arXiv:2211.01095.
