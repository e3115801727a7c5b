"""Others' checkpoints, read safely: a file is data, and nothing in it is executed.

One module per system, named after it.
"""

from scoresde.interop import score_sde

__all__ = ["score_sde"]
