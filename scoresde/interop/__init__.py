"""Checkpoints and networks of other libraries; files are read without executing their content.

One module per library; :mod:`~scoresde.interop.edm` covers EDM and k-diffusion. In the other
direction, :func:`~scoresde.interop.edm.to_kdiffusion` turns a score into a denoiser of
k-diffusion, :func:`~scoresde.interop.diffusers.scheduler_config` an SDE into a scheduler of
diffusers, and :meth:`SDE.reverse <scoresde.sdes.SDE.reverse>` returns an SDE for torchsde.
"""

from scoresde.interop import diffusers, edm, score_sde
from scoresde.interop.edm import to_kdiffusion

__all__ = ["diffusers", "edm", "score_sde", "to_kdiffusion"]
