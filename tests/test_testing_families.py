"""Every member of every family has the properties of its family: a line in the package enrolls it.

In CI each property is tested on at least five cases; with ``HYPOTHESIS_PROFILE=nightly`` on a
thousand, and on members with drawn parameters.
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import settings
from test_networks import MEMBERS as NETWORK_CLASSES
from test_networks import SMALL, build

from scoresde import GaussianMixture, likelihood, samplers, sdes, solvers, traces
from scoresde.testing import parametrize_with_checks, strategies
from scoresde.testing.examples import DoubleWell, OrnsteinUhlenbeck
from scoresde.testing.likelihoods import LIKELIHOODS
from scoresde.testing.networks import NETWORKS
from scoresde.testing.samplers import SAMPLERS
from scoresde.testing.scores import EXACT_SCORES, SCORES
from scoresde.testing.sdes import SDES
from scoresde.testing.solvers import SOLVERS
from scoresde.testing.traces import TRACES

CASES = settings.default.max_examples
NIGHTLY = CASES >= 1000
FEW = CASES if NIGHTLY else 5
PER_PROPERTY = CASES if NIGHTLY else None


@parametrize_with_checks(
    [*(member() for member in sdes.MEMBERS), OrnsteinUhlenbeck(), DoubleWell()], examples=FEW
)
def test_sdes(check):
    check()


@parametrize_with_checks(  # the last needs a density, which not every score has
    [*samplers.MEMBERS, samplers.MALA()], examples=FEW
)
def test_samplers(check):
    check()


@parametrize_with_checks(solvers.MEMBERS, examples=FEW)
def test_solvers(check):
    check()


@parametrize_with_checks(traces.MEMBERS, examples=FEW)
def test_traces(check):
    check()


DEAR = {"normalization", "budget", "off the data", "standard error", "closed form"}
COUNTS = {
    each.name: CASES if NIGHTLY else 2 if each.name in DEAR else FEW
    for each in LIKELIHOODS.properties
}
"""Seconds a case, of methods that simulate paths."""


@parametrize_with_checks(likelihood.MEMBERS, examples=COUNTS)
def test_likelihoods(check):
    check()


@pytest.mark.parametrize("member", NETWORK_CLASSES, ids=lambda member: member.__name__)
@pytest.mark.parametrize("name", [each.name for each in NETWORKS.properties])
def test_networks(member, name):
    """Small ones, for images of 2 × 8 × 8."""
    fixed = {"event_shape": SMALL["event_shape"]}
    NETWORKS.check(build(member), only=name, examples=CASES if NIGHTLY else 2, fixed=fixed)


@pytest.mark.parametrize(
    "member",
    [*samplers.MEMBERS, *solvers.MEMBERS, *traces.MEMBERS, *likelihood.MEMBERS],
    ids=repr,
)
def test_members_are_frozen(member):
    with pytest.raises(FrozenInstanceError):
        member.anything = None


def drawn(families):
    """Each property of each family, with the strategy that draws its members."""
    return pytest.mark.parametrize(
        ("family", "members", "name"),
        [
            pytest.param(family, members, each.name, id=f"{kind}-{each.name}")
            for kind, (family, members) in families.items()
            for each in family.properties
        ],
    )


@drawn(
    {kind: (SDES, members) for kind, members in strategies.GAUSSIAN.items()}
    | {"general": (SDES, strategies.general_sdes())}
)
def test_sdes_with_drawn_parameters(family, members, name):
    family.check(members, only=name, examples=FEW)


@drawn({"model": (SCORES, strategies.models()), "mixture": (SCORES, strategies.mixtures())})
def test_scores_with_drawn_parameters(family, members, name):
    family.check(members, only=name, examples=PER_PROPERTY)


@drawn({"mixture": (EXACT_SCORES, strategies.mixtures(sdes=strategies.sdes()))})
def test_exact_scores_with_drawn_parameters(family, members, name):
    family.check(members, only=name, examples=PER_PROPERTY)


@drawn({"trace": (TRACES, strategies.traces())})
def test_traces_with_drawn_parameters(family, members, name):
    family.check(members, only=name, examples=PER_PROPERTY)


@drawn({"network": (NETWORKS, strategies.networks())})
def test_networks_with_drawn_parameters(family, members, name):
    family.check(members, only=name, examples=PER_PROPERTY)


@pytest.mark.nightly
@drawn(
    {
        "sampler": (SAMPLERS, strategies.samplers()),
        "solver": (SOLVERS, strategies.solvers()),
        "likelihood": (LIKELIHOODS, strategies.methods()),
    }
)
def test_expensive_families_with_drawn_parameters(family, members, name):
    family.check(members, only=name, examples=CASES if NIGHTLY else 100)


@pytest.mark.parametrize("sigma_min", [0.01, 0.4])
def test_properties_of_a_density_hold_with_noise_at_time_zero(sigma_min):
    means = torch.tensor([[0.0, 0.0], [0.0, -2.6]], dtype=torch.float64)
    covariances = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.9, -0.3], [-0.3, 0.2]]]).double()
    sde = sdes.VESDE(sigma_min=sigma_min, sigma_max=20.0)
    mixture = GaussianMixture(torch.ones(2), means, covariances, sde)
    report = EXACT_SCORES.check(mixture, only=["Tweedie", "convolution"], examples=5)
    assert len(report.results) == 2
