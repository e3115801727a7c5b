"""Models and schedulers of Hugging Face's diffusers.

:func:`load` reads a folder, :func:`wrap` takes a network in memory; both return a
:class:`~scoresde.scores.ScoreModel` with the SDE of the scheduler.
:func:`sampler_settings` returns the sampler and times that are equivalent to a scheduler,
:func:`scheduler_config` the scheduler that is equivalent to an SDE.

Only :func:`load` requires diffusers to be installed.

References:
    von Platen et al., *Diffusers: state-of-the-art diffusion models*, 2022,
    github.com/huggingface/diffusers.
"""

from scoresde.interop.diffusers.models import Files, Network, files, learned_variance, load, wrap
from scoresde.interop.diffusers.samplers import SamplerSettings, sampler_settings
from scoresde.interop.diffusers.schedules import ForwardProcess, forward_process, scheduler_config

__all__ = [
    "Files",
    "ForwardProcess",
    "Network",
    "SamplerSettings",
    "files",
    "forward_process",
    "learned_variance",
    "load",
    "sampler_settings",
    "scheduler_config",
    "wrap",
]
