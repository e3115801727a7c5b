"""Likelihoods by the probability flow, ours and others': error, cost, budget, noise, wall time.

    python benchmarks/likelihood.py [--only defaults work one_probe off_data wall_time probes]
        [--quick] [--out benchmarks/results]

Scores are exact (Gaussian mixtures), so that every error is known, but for a small U-Net that has
learnt digits, trained when first needed and kept in `benchmarks/density/.cache`. Compared in one
run are torchdiffeq, zuko, torchode and flow_matching as they are installed, and the recipe of
score_sde. The memory of exact traces has a script of its own, `benchmarks/trace_memory.py`.
"""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import version
from pathlib import Path

import torch
from density import defaults, off_data, one_probe, probes, wall_time, work

SECTIONS = {
    "defaults": defaults,
    "work": work,
    "one_probe": one_probe,
    "off_data": off_data,
    "wall_time": wall_time,
    "probes": probes,
}
PEERS = ("torch", "torchdiffeq", "zuko", "torchode", "flow_matching", "scipy")


def main() -> None:
    """Run the sections asked for; each writes its own page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all?")
    parser.add_argument("--out", type=Path, help="folder for the pages; printed only if left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    for key in options.only:
        section = SECTIONS[key]
        body = section.run(options.quick, options.out)
        note = (
            f"Made by `python benchmarks/likelihood.py --only {key}` on one of two CPU cores: "
            f"{versions}, Python {platform.python_version()}."
        )
        page = f"# {section.__doc__.strip()}\n\n{note}\n\n{body}\n"
        print(page, flush=True)
        if options.out:
            (options.out / f"likelihood_{key}.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
