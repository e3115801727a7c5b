# %% [markdown]
# # Guidance: samples of a class, and what a weight does to them
#
# Sums of scores turn a score of p(x) into one of p(x|y), or of a sharper density. This script shows
# the methods on points of the plane, where the exact result is known and claims can be checked. It
# takes well under a minute; run it as a script, or cell by cell.
#
#     python tutorials/guidance.py

# %%
import math

import torch

from scoresde import (
    MLP,
    VPSDE,
    AnnealedLangevin,
    GaussianMixture,
    PredictorCorrector,
    ReverseDiffusion,
    ScoreModel,
    by_half_logsnr,
    fit,
    log_likelihood,
    sample,
)
from scoresde.guidance import (
    GuidanceInterval,
    Mixture,
    Product,
    classifier_free_guidance,
    classifier_guidance,
)

torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## 1. Data of three classes
#
# Each class is a pair of blobs on a circle, so that adjacent classes overlap and each has two
# modes. `Mixture` is the score of all classes together, exact at every noise level.

# %%
sde = VPSDE()


def pair_of_blobs(k):
    angles = 2 * math.pi * (k + torch.tensor([-0.25, 0.25])) / 3
    means = torch.stack([angles.cos(), angles.sin()], dim=1)
    return GaussianMixture(
        torch.tensor([0.75, 0.25]), means, 0.06 * torch.eye(2).expand(2, 2, 2), sde
    )


classes = [pair_of_blobs(k) for k in range(3)]
everything = Mixture(classes)
x = torch.cat([part.sample(1500, generator=generator) for part in classes])
y = torch.arange(3).repeat_interleave(1500)
accuracy = (everything.log_responsibilities(x, 0.0).argmax(1) == y).double().mean()
print(f"the exact classifier gets {100 * float(accuracy):.1f} % of the points right")


def describe(name, samples):
    """Print the exact p(class 0), the fraction in the lesser blob, and the width."""
    probability = everything.log_responsibilities(samples, 0.0)[:, 0].exp().mean()
    lesser = ((samples - classes[0].means[1].float()).norm(dim=1) < 0.7).double().mean()
    width = samples.std(dim=0).mean()
    print(
        f"{name:34s} p(class 0) {float(probability):.3f}, "
        f"lesser blob {float(lesser):.2f}, width {width:.2f}"
    )


describe("data of class 0", x[y == 0])

# %% [markdown]
# ## 2. One network, conditional and unconditional
#
# `fit` passes the labels to the network and drops one in ten, so that it also learns p(x). `given`
# binds a label; the result is a score.

# %%
network = MLP((2,), width=64, depth=2, classes=3, label_scale=3.0)
model = ScoreModel(network, sde, label=by_half_logsnr)
model = fit(
    model, (x, y), steps=1200, lr=3e-3, cosine=True, condition="classes", condition_dropout=0.1,
    progress=False,
).score  # fmt: skip


def draw(score, n=1000):
    return sample(score, (n, 2), steps=25, generator=torch.Generator().manual_seed(1))


describe("conditional model", draw(model.given(classes=0)))

# %% [markdown]
# ## 3. Classifier-free guidance
#
# The score is extrapolated from the unconditional one through the conditional one,
# s_∅ + w (s − s_∅). Larger weights make samples more typical of the class, and less varied; too
# large ones leave the support of the data. An interval of noise levels σ/α excludes the first
# steps, where guidance reduces the variety most.

# %%
for weight in (1.0, 2.0, 4.0):
    describe(f"weight {weight:g}", draw(classifier_free_guidance(model.given(classes=0), weight)))
interval = GuidanceInterval(4.0, low=0.1, high=1.5)
describe(
    "weight 4 in an interval", draw(classifier_free_guidance(model.given(classes=0), interval))
)

# %% [markdown]
# ## 4. Classifier guidance
#
# By Bayes' theorem the conditional score is the sum of an unconditional score and the gradient of a
# classifier of noisy data, ∇ log p(x_t|y) = ∇ log p(x_t) + ∇ log p(y|x_t). Here both are known
# exactly, and so is the result. (`NoisyClassifier` and `classification_loss` train one.)

# %%
guided = classifier_guidance(everything, everything.log_responsibilities, labels=0)
describe("exact score and classifier", draw(guided))
probe = torch.randn(100, 2, generator=generator)
error = (guided(probe, 0.3) - classes[0](probe, 0.3)).abs().max()
print(f"largest difference from the exact conditional score: {float(error):.1e}")

# %% [markdown]
# ## 5. Products need correctors
#
# A sum of scores is the score of a product of densities *at one noise level*. Noising does not
# commute with products, so that samples of the reverse SDE do not have the product of the clean
# densities. Langevin steps at each level reduce this error, the more steps the better.

# %%


def normal(mean, variance):
    return GaussianMixture(
        torch.ones(1), torch.tensor([[mean]]), torch.full((1, 1, 1), variance), sde
    )


both = Product([normal(-1.0, 0.3), normal(1.0, 0.6)])  # their product is N(−1/3, 0.2)
corrected = PredictorCorrector(ReverseDiffusion(), AnnealedLangevin(0.5), corrections=20)
for name, sampler in {"reverse SDE": ReverseDiffusion(), "with Langevin steps": corrected}.items():
    points = sample(both, (2000, 1), sampler, steps=50, generator=generator)
    print(
        f"product, {name:20s} mean {float(points.mean()):+.2f} (-0.33), "
        f"variance {float(points.var()):.3f} (0.200)"
    )

# %% [markdown]
# ## 6. A classifier made of likelihoods
#
# A conditional model gives log p(x|y) for every class. The prediction is the class of the largest.

# %%
test = torch.cat([part.sample(40, generator=generator) for part in classes])
truth = torch.arange(3).repeat_interleave(40)
by_class = torch.stack(
    [log_likelihood(model.given(classes=k), test, tolerance=1e-2).log_prob for k in range(3)], dim=1
)
ours = (by_class.argmax(1) == truth).double().mean()
best = (everything.log_responsibilities(test, 0.0).argmax(1) == truth).double().mean()
print(
    f"right by likelihood: {100 * float(ours):.0f} %, "
    f"by the exact classifier: {100 * float(best):.0f} %"
)
