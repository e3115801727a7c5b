r"""A small training loop for scores.

Each step takes a batch of data, draws one time and one noise per row, and descends the gradient of
the denoising score matching loss (:mod:`scoresde.training.losses`) with AdamW. What is kept is not the last
weights θ_n but their exponential moving average,

    θ̄_n = d_n θ̄_{n−1} + (1 − d_n) θ_n,        d_n = min(d, (1 + n)/(10 + n)),

whose samples and likelihoods are better for the same work.

Every random number of step n is a function of (seed, n): nothing about chance needs to be stored,
and a run that was stopped goes on from its checkpoint as if nothing had happened, to the last bit
on a CPU.
"""

from scoresde.training.fit import fit
from scoresde.training.result import FitResult, History

__all__ = ["FitResult", "History", "fit"]
