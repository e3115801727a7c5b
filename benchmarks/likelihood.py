"""Likelihoods by the probability flow, ours and others': error, cost, budget, noise, wall time.

    python benchmarks/likelihood.py [--only defaults work one_probe off_data wall_time probes]
        [--quick] [--out benchmarks/results]

Scores are exact (Gaussian mixtures), so that every error is known, except for small
networks, trained when first needed and cached in `benchmarks/density/.cache`. Compared in one run
are the installed torchdiffeq, zuko, torchode and flow_matching, and the recipe of score_sde. The
memory of exact traces is measured by `benchmarks/trace_memory.py`.
"""

from __future__ import annotations

import torch
from common import header, parser, write_page
from density import defaults, off_data, one_probe, probes, wall_time, work

SECTIONS = {
    "defaults": defaults,
    "work": work,
    "one_probe": one_probe,
    "off_data": off_data,
    "wall_time": wall_time,
    "probes": probes,
}
PACKAGES = ("torch", "torchdiffeq", "zuko", "torchode", "flow_matching", "scipy")


def main() -> None:
    """Run the sections of ``--only``; each writes its own page."""
    options = parser(__doc__, sections=SECTIONS).parse_args()
    torch.set_num_threads(1)
    for key in options.only:
        section = SECTIONS[key]
        body = section.run(options.quick, options.out)
        command = f"python benchmarks/likelihood.py --only {key}"
        head = header(section.__doc__.strip(), command, "one of two CPU cores", *PACKAGES)
        write_page(options.out, f"likelihood_{key}.md", f"{head}\n\n{body}")


if __name__ == "__main__":
    main()
