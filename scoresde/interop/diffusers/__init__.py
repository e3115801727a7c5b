"""Models and schedulers of Hugging Face's diffusers.

A folder is read by :func:`load`, a network in memory by :func:`wrap`; both become a ``ScoreModel``
with the diffusion of their scheduler, so that likelihoods and all samplers are theirs.
:func:`recipe` tells which of our samplers a scheduler is, :func:`scheduler_config` which scheduler
a diffusion of ours is.

Only :func:`load` needs diffusers itself, to build the network.

References:
    von Platen et al., *Diffusers: state-of-the-art diffusion models*, 2022,
    github.com/huggingface/diffusers.
"""

from scoresde.interop.diffusers.models import Files, Network, files, learned_variance, load, wrap
from scoresde.interop.diffusers.recipes import Recipe, recipe
from scoresde.interop.diffusers.schedules import Process, process, scheduler_config

__all__ = [
    "Files",
    "Network",
    "Process",
    "Recipe",
    "files",
    "learned_variance",
    "load",
    "process",
    "recipe",
    "scheduler_config",
    "wrap",
]
