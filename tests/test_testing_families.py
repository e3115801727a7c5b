"""Every member of every family obeys the laws of its family: a line in the family enrols it.

In CI each law is tried on a few cases; with ``HYPOTHESIS_PROFILE=nightly`` on a thousand, and on
members with parameters that are drawn.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import settings

from scoresde import GaussianMixture, likelihood, samplers, sdes, solvers, traces
from scoresde.testing import parametrize_with_checks, strategies
from scoresde.testing.examples import DoubleWell, OrnsteinUhlenbeck
from scoresde.testing.likelihoods import LIKELIHOODS
from scoresde.testing.samplers import SAMPLERS
from scoresde.testing.scores import LAWS, SCORES
from scoresde.testing.sdes import SDES
from scoresde.testing.solvers import SOLVERS
from scoresde.testing.traces import TRACES

CASES = settings.default.max_examples
NIGHTLY = CASES >= 1000
FEW = CASES if NIGHTLY else 3


def numbers(family, dear=()):
    """How many cases of each law are tried: in CI two, of dear ones the first alone."""
    return {law.name: CASES if NIGHTLY else 2 - (law.name in dear) for law in family.properties}


@parametrize_with_checks(
    [*(member() for member in sdes.MEMBERS), OrnsteinUhlenbeck(), DoubleWell()], examples=FEW
)
def test_diffusions(check):
    check()


DEAR = ("order of the flow", "limit", "inverse", "Gaussian data", "weak order", "law of the data")


@parametrize_with_checks(  # the last needs a density, which not every score has
    [*samplers.MEMBERS, samplers.MALA()], examples=numbers(SAMPLERS, DEAR)
)
def test_samplers(check):
    check()


@parametrize_with_checks(solvers.MEMBERS, examples=numbers(SOLVERS))
def test_solvers(check):
    check()


@parametrize_with_checks(traces.MEMBERS, examples=FEW)
def test_traces(check):
    check()


ALL_BUT_SHAPES = {law.name for law in LIKELIHOODS.properties} - {"shapes"}


@parametrize_with_checks(likelihood.MEMBERS, examples=numbers(LIKELIHOODS, ALL_BUT_SHAPES))
def test_likelihoods(check):
    check()


@pytest.mark.parametrize(
    "member",
    [*samplers.MEMBERS, *solvers.MEMBERS, *traces.MEMBERS, *likelihood.MEMBERS],
    ids=repr,
)
def test_recipes_cannot_be_changed(member):
    with pytest.raises(FrozenInstanceError):
        member.anything = None


def drawn(families):
    """Each law of each family, with the strategy that draws its members."""
    return pytest.mark.parametrize(
        ("family", "members", "law"),
        [
            pytest.param(family, members, law.name, id=f"{name}-{law.name}")
            for name, (family, members) in families.items()
            for law in family.properties
        ],
    )


@drawn(
    {name: (SDES, members) for name, members in strategies.FAMILIES.items()}
    | {"general": (SDES, strategies.general_sdes())}
)
def test_diffusions_with_drawn_parameters(family, members, law):
    family.check(members, only=law, examples=FEW)


@drawn({"model": (SCORES, strategies.models()), "mixture": (SCORES, strategies.mixtures())})
def test_scores_with_drawn_parameters(family, members, law):
    family.check(members, only=law, examples=CASES if NIGHTLY else None)


@drawn({"mixture": (LAWS, strategies.mixtures(sdes=strategies.sdes()))})
def test_exact_scores_with_drawn_parameters(family, members, law):
    family.check(members, only=law, examples=CASES if NIGHTLY else None)


@drawn({"trace": (TRACES, strategies.traces())})
def test_traces_with_drawn_parameters(family, members, law):
    family.check(members, only=law, examples=CASES if NIGHTLY else None)


@pytest.mark.nightly
@drawn(
    {
        "sampler": (SAMPLERS, strategies.samplers()),
        "solver": (SOLVERS, strategies.solvers()),
        "likelihood": (LIKELIHOODS, strategies.methods()),
    }
)
def test_the_rest_with_drawn_parameters(family, members, law):
    family.check(members, only=law, examples=CASES if NIGHTLY else 100)


@pytest.mark.parametrize("sigma_min", [0.01, 0.4])
def test_laws_of_a_density_hold_where_there_is_noise_at_time_zero(sigma_min):
    means = torch.tensor([[0.0, 0.0], [0.0, -2.6]], dtype=torch.float64)
    covariances = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.9, -0.3], [-0.3, 0.2]]]).double()
    sde = sdes.VESDE(sigma_min=sigma_min, sigma_max=20.0)
    mixture = GaussianMixture(torch.ones(2), means, covariances, sde)
    LAWS.check(mixture, only=["Tweedie", "convolution"], examples=4)
