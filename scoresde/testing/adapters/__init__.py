"""What is not written under our contract, as members of our families, so that it can be checked.

| what there is | what it becomes |
|---|---|
| ``drift(x, t)`` and ``diffusion(t)`` | ``FunctionSDE`` |
| ``alpha(t)`` and ``sigma(t)`` | ``FunctionGaussianSDE`` |
| an object of torchsde | ``FromTorchSDE`` |
| ``score(x, t)`` | ``FunctionScore`` |
| a step ``(score, x, t, s, noise) -> x`` | ``FunctionSampler`` |
| a whole run ``(score, x, times, noise) -> x`` | ``LoopSampler`` |
| a scheduler of diffusers | ``SchedulerSampler`` |
| an integrator ``(field, z, start, end, tolerance) -> z`` | ``FunctionSolver`` |
| a divergence ``(field, x, noise) -> estimates`` | ``FunctionTrace`` |
| a log-density ``(score, x) -> log p`` | ``FunctionMethod`` |

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
