"""Samplers of this and other libraries: strong error, distribution, cost of the loop, robustness.

    python benchmarks/samplers.py [--only strong distribution starts loop finite figure] [--quick]
        [--out benchmarks/results]

Scores are exact (Gaussian mixtures), so that every error is that of the sampler, and evaluations of
the score are counted during the run. The other libraries are diffusers, azula and flow_matching as
installed, and k-diffusion by its recursions, which are transcribed here.
"""

from __future__ import annotations

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from sampling import distribution, figure, finite, loop, starts, strong

SECTIONS = {
    "strong": ("Strong error", strong),
    "distribution": ("Evaluations until the distribution is right", distribution),
    "starts": ("Distribution of the samples, from many starts", starts),
    "loop": ("Cost of the loop", loop),
    "finite": ("Finite for every number of steps", finite),
    "figure": ("Error against evaluations", figure),
}
PEERS = ("torch", "diffusers", "azula", "flow_matching", "torchdiffeq", "scipy")


def main() -> None:
    """Run the given sections; each writes its own page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--out", type=Path, help="folder for the pages; printed only if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    for key in options.only:
        title, section = SECTIONS[key]
        began = time.perf_counter()
        body = section.run(options.quick, options.out)
        note = (
            f"Made by `python benchmarks/samplers.py --only {key}` in "
            f"{time.perf_counter() - began:.0f} s on one CPU thread: {versions}, Python "
            f"{platform.python_version()}."
        )
        page = f"# Samplers: {title[0].lower()}{title[1:]}\n\n{section.__doc__}\n{note}\n\n{body}\n"
        print(page, flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"samplers_{key}.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
