# %% [markdown]
# # Check your solver: a coefficient that no picture shows
#
# You have written a sampler. Its pictures look fine, the more steps the better. Is it right? This
# script follows an author who writes DPM-Solver++(3M) as it is found in many code bases, is told
# that it is not of the third order, finds the coefficient, and mends it. It takes less than a
# minute; run it as it stands, or cell by cell.
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
# ## 1. A step, and what it promises
#
# In the half log-SNR λ = log α − log σ the probability flow is nearly linear. From t to s, with
# h = λ_s − λ_t > 0,
#
#     x_s = (σ_s/σ_t) x_t + α_s ∫₀ʰ e^{r−h} x̂(λ_t + r) dr.
#
# The denoised x̂ is not known along the way. A step of first order takes it as constant: this is
# DDIM. As a plain function it becomes a sampler through an adapter, which also says what the
# function promises: no noise, and errors that fall like 1/N.


# %%
def ddim(score, x, t, s, noise):
    here, there = noise_level_at(score.sde, t), noise_level_at(score.sde, s)
    h = there.half_logsnr - here.half_logsnr
    clean = score.denoised(x, t)
    return there.sigma / here.sigma * x - there.alpha * math.expm1(-h) * clean


check_sampler(FunctionSampler(ddim, convergence_order=1, deterministic=True))
print("DDIM keeps all laws of samplers")

# %% [markdown]
# ## 2. Third order
#
# Now x̂ is replaced by the parabola through its last three values. With the slope D₁ and the
# curvature D₂ from divided differences, the step reads, in the authors' code and its many copies,
#
#     x_s = (σ_s/σ_t) x_t − α_s (e^{−h} − 1) x̂ + α_s ((e^{−h} − 1)/h + 1) D₁
#           − α_s ((e^{−h} − 1 + h)/h² − ½) D₂.
#
# A step with a memory is a `Sampler`: a small frozen class, whose `step` also gets and returns what
# it wants to remember, here the last two λ and x̂. `convergence_order = 3` is its promise.


# %%
@dataclass(frozen=True)
class ThirdOrder(Sampler):
    """DPM-Solver++(3M) as it is published."""

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
# ## 3. What looking at samples shows
#
# Two blobs, 50 steps: their distances and widths are right to two digits. Nothing is suspicious.

# %%
means, covariances = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.04)
data = GaussianMixture(torch.ones(2), means, covariances, VPSDE())
generator = torch.Generator().manual_seed(0)
x = sample(data, (4000, 1), ThirdOrder(), steps=50, generator=generator)
left, right = x[x < 0], x[x > 0]
print(f"modes at {float(left.mean()):.2f} and {float(right.mean()):.2f}, expected -1 and 1")
print(f"widths {float(left.std()):.2f} and {float(right.std()):.2f}, expected 0.2")

# %% [markdown]
# ## 4. What the laws show
#
# `check_sampler` holds a sampler to what it promises. On a mixture of two modes the flow's end is
# known to eleven digits from an integrator of scipy's, so that the order of convergence can simply
# be measured. No law but one is broken.

# %%
try:
    check_sampler(ThirdOrder(), only="order of the flow")
    raise SystemExit("the wrong coefficient was not found")
except BrokenPropertyError as broken:
    print(broken)

# %% [markdown]
# The report names the law and the place, shows the errors with their numbers of steps, says what
# usually is the cause, and ends in a line of code that shows it again. Order 2 where 3 is promised,
# "a wrong weight of the highest difference (a missing factor 2 …)".
#
# ## 5. The coefficient
#
# So look at the highest difference. With u = r/h the parabola is
#
#     x̂(λ_t + r) = x̂ + D₁ u + ½ D₂ u²,        D₂ = h² x̂″,
#
# and its last term contributes α_s h ∫₀¹ e^{−h(1−u)} ½ u² du · D₂ = −α_s ((e^{−h} − 1 + h)/h² − ½)
# D₂. That is the published weight. Now D₂: the first differences D₁₀ = h x̂′ at the middle of the
# last step and D₁₁ at the middle of the one before are ½ (r₀ + r₁) h apart, so that
#
#     D₂ = 2 (D₁₀ − D₁₁)/(r₀ + r₁).
#
# The factor 2 stands in the single-step method of the authors' code; the multistep one has lost it.


# %%
@dataclass(frozen=True)
class Mended(ThirdOrder):
    """With the factor 2."""

    def curvature(self, differences, distance):
        return 2 * differences / distance


check_sampler(Mended(), only="order of the flow")
print("with the factor 2 it is of the third order")

# %% [markdown]
# ## 6. All the other laws
#
# Order is one law. The others are about what samplers of all kinds get wrong: shapes, seeds,
# batch-mates, the closed ends, the law of the data.

# %%
for name, check in checks(Mended()):
    check()
    print(f"passed  {name}")

# %% [markdown]
# ## What to read next
#
# * In your own tests: `@parametrize_with_checks([Mended(), …])` makes one test of each law.
# * From a shell: `scoresde check my_module:Mended`.
# * SDEs, scores, solvers of ODEs, divergence estimators and likelihoods have laws too: `check_sde`,
#   `check_score`, `check_solver`, `check_trace`, `check_likelihood`; `scoresde.testing.adapters`
#   takes plain functions, objects of torchsde and schedulers of diffusers.
# * Lu et al., *DPM-Solver++*, 2022, arXiv:2211.01095.
