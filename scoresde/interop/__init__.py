"""Others' checkpoints, read safely: a file is data, and nothing in it is executed.

One module per system, named after it; EDM's also holds k-diffusion. The ways out are
:func:`to_kdiffusion`, :func:`diffusers.scheduler_config`, and, for torchsde, what
:meth:`SDE.reverse` returns.
"""

from scoresde.interop import diffusers, edm, score_sde
from scoresde.interop.edm import to_kdiffusion

__all__ = ["diffusers", "edm", "score_sde", "to_kdiffusion"]
