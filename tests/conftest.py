"""What all tests share: shape checks, Hypothesis profiles, one thread, and a few fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and types are checked in tests only. JAXTYPING_DISABLE=1 turns the checks off.
install_import_hook("scoresde", "typechecking.check_after_call")

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=25, print_blob=True)
settings.register_profile("nightly", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Start every test from the same state of the global generator."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference arrays that lies beside the repository, if it is there."""
    if not GOLDEN.is_dir():
        pytest.skip("the reference arrays are not beside this checkout")
    return GOLDEN
