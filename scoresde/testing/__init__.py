"""Property-based tests of SDEs, networks, scores, samplers and solvers, yours included.

::

    from scoresde.testing import check_sde

    check_sde(MySDE())  # raises an AssertionError that names the property, with a counterexample

Needs hypothesis: ``pip install 'scoresde[testing]'``.
"""

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "scoresde.testing needs hypothesis: install it with pip install 'scoresde[testing]'"
    ) from error

from scoresde.testing import adapters, strategies
from scoresde.testing.checks import checks, family_of, parametrize_with_checks
from scoresde.testing.likelihoods import check_likelihood
from scoresde.testing.networks import check_network
from scoresde.testing.properties import (
    BrokenPropertyError,
    Counterexample,
    NotFiniteError,
    Property,
    PropertyResult,
    PropertySuite,
    Report,
    close,
    finite,
    holds,
)
from scoresde.testing.samplers import check_sampler
from scoresde.testing.scores import check_score
from scoresde.testing.sdes import check_sde
from scoresde.testing.solvers import check_solver
from scoresde.testing.traces import check_trace

__all__ = [
    "BrokenPropertyError",
    "Counterexample",
    "NotFiniteError",
    "Property",
    "PropertyResult",
    "PropertySuite",
    "Report",
    "adapters",
    "check_likelihood",
    "check_network",
    "check_sampler",
    "check_score",
    "check_sde",
    "check_solver",
    "check_trace",
    "checks",
    "close",
    "family_of",
    "finite",
    "holds",
    "parametrize_with_checks",
    "strategies",
]
