"""Others' checkpoints, read safely: a file is data, and nothing in it is executed.

One module per system, named after it.
"""

from scoresde.interop import diffusers, edm, score_sde

__all__ = ["diffusers", "edm", "score_sde"]
