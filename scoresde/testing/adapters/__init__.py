"""Functions and objects of other libraries as members of the families, to be checked.

=========================================================  ===========================
code                                                       adapter
=========================================================  ===========================
``drift(x, t)`` and ``diffusion(t)``                       :class:`FunctionSDE`
``alpha(t)`` and ``sigma(t)``                              :class:`FunctionGaussianSDE`
an object of torchsde                                      :class:`FromTorchSDE`
``score(x, t)``                                            :class:`FunctionScore`
a step ``(score, x, t, s, noise) -> x``                    :class:`FunctionSampler`
a loop ``(score, x, times, noise) -> x``                   :class:`LoopSampler`
a scheduler of diffusers                                   :class:`SchedulerSampler`
an integrator ``(field, z, start, end, tolerance) -> z``   :class:`FunctionSolver`
a divergence ``(field, x, noise) -> estimates``            :class:`FunctionTrace`
a log-density ``(score, x) -> log p``                      :class:`FunctionMethod`
=========================================================  ===========================

::

    check_sampler(FunctionSampler(my_step, convergence_order=2, deterministic=True))
"""

from scoresde.scores import FunctionScore
from scoresde.testing.adapters.functions import (
    FunctionGaussianSDE,
    FunctionMethod,
    FunctionSampler,
    FunctionSDE,
    FunctionSolver,
    FunctionTrace,
)
from scoresde.testing.adapters.loops import LoopSampler
from scoresde.testing.adapters.schedulers import SchedulerSampler
from scoresde.testing.adapters.torch_sde import FromTorchSDE

__all__ = [
    "FromTorchSDE",
    "FunctionGaussianSDE",
    "FunctionMethod",
    "FunctionSDE",
    "FunctionSampler",
    "FunctionScore",
    "FunctionSolver",
    "FunctionTrace",
    "LoopSampler",
    "SchedulerSampler",
]
