"""``scoresde likelihood``: a model file and data → log-likelihoods, row by row.

Finished rows are at once appended to ``OUT.partial``, one JSON array a line, below a line that
tells of the run. A run that was stopped goes on behind its last whole row; when all rows are there,
the result is written in one piece. What is drawn for a row depends on the seed and the row alone,
so that neither the batch size nor an interruption changes the numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from scoresde._core.checks import check_integer, check_positive
from scoresde._core.counter_rng import CounterRNG
from scoresde.commands.base import (
    Command,
    add_device,
    add_seed,
    need,
    read_model,
    replacing,
    writable,
)
from scoresde.commands.data import Bins, Rows, add_data, bins_of, open_data
from scoresde.dequantization import looks_quantized
from scoresde.likelihood import (
    FlowIntegral,
    ItoEstimate,
    LikelihoodComparison,
    Method,
    MethodComparison,
    PathIntegral,
    VariationalBound,
    log_likelihood,
)
from scoresde.scores import Score, ScoreModel
from scoresde.traces import ExactTrace, Hutchinson, Trace

__all__ = ["COMMAND", "Recipe", "Record", "records", "summary", "write"]

_SEED_OF_PROBES, _SEED_OF_NOISE = 0, 1


class Record(NamedTuple):
    """One finished row: the likelihood of a sample, and what is known of its error; nats."""

    row: int
    log_prob: float
    bits_per_dim: float
    standard_error: float
    solver_error: float
    prior_mismatch: float
    evaluations: int
    converged: bool
    seconds: float
    others: dict[str, float]
    """By each further method: its log_prob, and its error as two standard errors and the solver's;
    files have a column for each."""


METHODS: dict[str, Method] = {
    "flow": FlowIntegral(),
    "path": PathIntegral(),
    "bound": VariationalBound(),
    "ito": ItoEstimate(),
}
"""What the command line calls the methods."""


@dataclass(frozen=True)
class Recipe:
    """All that decides the numbers but the model and the data.

    Attributes:
        bins: the bins of integer data; None for float data.
        trace: how the divergence is told; None for the library's choice.
        tolerance: wanted error of log p by the integration, bits per dimension.
        seed: decides the dequantization noise and the probes of every row.
        methods: which densities, by the names of ``METHODS``; the first is the one that counts.
    """

    bins: Bins | None
    trace: Trace | None
    tolerance: float
    seed: int
    methods: tuple[str, ...] = ("flow",)

    def points(self, raw: Tensor, first: int) -> Tensor:
        """Return raw rows as points, with noise that is a function of the seed and the row alone.

        Args:
            raw: some rows of the data.
            first: the number of the first of them.
        """
        if self.bins is None:
            return raw
        noisy = [
            self.bins.dequantize(raw[k : k + 1], self._generator(_SEED_OF_NOISE, first + k))
            for k in range(len(raw))
        ]
        return torch.cat(noisy)

    def probes(self, first: int) -> torch.Generator:
        """Return the source of the probes, at the place of row ``first``."""
        generator = self._generator(_SEED_OF_PROBES, 0)
        CounterRNG.draw(first, generator)
        return generator

    def _generator(self, purpose: int, row: int) -> torch.Generator:
        key = hashlib.blake2b(repr((self.seed, purpose, row)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)


def records(
    score: Score, rows: Rows, recipe: Recipe, *, start: int, batch_size: int, device: str
) -> Iterator[list[Record]]:
    """Yield the finished rows from ``start`` on, a batch at a time."""
    for first in range(start, len(rows), batch_size):
        began = time.perf_counter()
        raw = rows.read(first, first + batch_size)
        x = recipe.points(raw, first).to(device)
        result = log_likelihood(
            score,
            x,
            trace=recipe.trace,
            method=MethodComparison(tuple(METHODS[name] for name in recipe.methods)),
            tolerance=recipe.tolerance,
            generator=recipe.probes(first),
        )
        bins = recipe.bins
        bits = (
            result.bits_per_dim()
            if bins is None
            else result.bits_per_dim(levels=bins.levels, scale=bins.scale)
        )
        columns = (
            range(first, first + len(x)),
            result.log_prob.tolist(),
            bits.tolist(),
            result.standard_error.tolist(),
            result.solver_error.tolist(),
            result.prior_mismatch.tolist(),
            result.evaluations.tolist(),
            result.converged.tolist(),
            [(time.perf_counter() - began) / len(x)] * len(x),
            others(recipe.methods, cast(LikelihoodComparison, result)),
        )
        yield [Record(*cells) for cells in zip(*columns, strict=True)]


def others(methods: Sequence[str], result: LikelihoodComparison) -> list[dict[str, float]]:
    """Return what the methods but the first say of each row."""
    told = {
        f"{name}_{part}": values.tolist()
        for name, answer in zip(methods[1:], result.results[1:], strict=True)
        for part, values in (("log_prob", answer.log_prob), ("error", answer.error))
    }
    return [{name: values[i] for name, values in told.items()} for i in range(len(result))]


# --- the file of a run in progress


class Partial:
    """The rows finished so far, in a file that only ever grows.

    Args:
        path: the file.
        run: what tells this run apart from others; a file of another run is refused.
        restart: begin anew, whatever the file holds.

    Raises:
        ValueError: if the file belongs to another run, or was not written by this command.
    """

    def __init__(self, path: Path, run: dict[str, str], restart: bool) -> None:
        self.path = path
        self.finished: list[Record] = []
        if path.exists() and not restart:
            self.finished = self.predict(run)
        with replacing(path) as scratch:  # without a last line cut short
            scratch.write_text("".join(_line(each) for each in (run, *self.finished)))

    def append(self, records: Sequence[Record]) -> None:
        """Write rows, and see that they are on the disk."""
        with self.path.open("a") as file:
            file.write("".join(map(_line, records)))
            file.flush()
            os.fsync(file.fileno())
        self.finished += records

    def predict(self, run: dict[str, str]) -> list[Record]:
        first, *lines = self.path.read_text().split("\n")
        try:
            kept = dict(json.loads(first))
        except (ValueError, TypeError):
            raise ValueError(
                f"--out: expected {self.path} to be of an interrupted run, got another file; move "
                "it away or pass --restart"
            ) from None
        changed = [name for name in run if kept.get(name) != run[name]]
        if changed:
            told = ", ".join(f"{name} {kept.get(name)} (now {run[name]})" for name in changed)
            raise ValueError(
                f"--out: expected {self.path} to be of the same run, got one with {told}; pass "
                "--restart to begin anew, or another --out"
            )
        return [Record(*json.loads(line)) for line in lines[:-1]]  # the last may be cut short


def _line(value: object) -> str:
    return json.dumps(value) + "\n"


# --- results


def write(path: Path, records: Sequence[Record]) -> None:
    """Write all rows in one piece, as .npz, .csv or .parquet: a column for each field."""
    rows = [{**record._asdict(), **record.others} for record in records]
    names = [name for name in rows[0] if name != "others"]
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    with replacing(path) as scratch:
        if path.suffix == ".npz":
            np.savez_compressed(scratch, **columns)  # type: ignore[arg-type]
        elif path.suffix == ".csv":
            lines = [names, *([row[name] for name in names] for row in rows)]
            scratch.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
        else:
            table = need("pyarrow", "data").table(columns)
            need("pyarrow.parquet", "data").write_table(table, scratch)


def summary(records: Sequence[Record]) -> str:
    """Tell the mean with its standard error over the rows, the budget, and the cost."""
    n = len(records)
    bits = np.array([record.bits_per_dim for record in records])
    nats = np.array([record.log_prob for record in records])
    error = f" ± {bits.std(ddof=1) / math.sqrt(n):.4f}" if n > 1 else ""
    lines = [
        f"{bits.mean():.4f}{error} bits/dim (mean and standard error over {n} samples), mean log p "
        f"= {nats.mean():.3f} nats",
        f"largest standard error of a trace {max(r.standard_error for r in records):.2g} nats, "
        f"largest solver error {max(r.solver_error for r in records):.2g} nats, "
        f"{sum(r.converged for r in records)} of {n} converged",
        f"{np.mean([r.evaluations for r in records]):.1f} evaluations a sample, "
        f"{sum(r.seconds for r in records):.1f} s",
    ]
    for name in records[0].others:
        if name.endswith("_log_prob"):
            other = name.removesuffix("_log_prob")
            gaps = np.array([r.others[name] - r.log_prob for r in records])
            budget = [r.others[f"{other}_error"] + _error(r) for r in records]
            lines.append(
                f"{other}: log p differs by {gaps.mean():.3f} nats in the mean, for "
                f"{int((abs(gaps) > budget).sum())} of {n} by more than both errors explain"
            )
    return "\n".join(lines)


def _error(record: Record) -> float:
    return 2 * record.standard_error + record.solver_error


# --- the command


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model file written by scoresde train")
    add_data(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        metavar="X",
        help="wanted error of log p by the integration, bits per dimension (default: %(default)s)",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        choices=list(METHODS),
        default=["flow"],
        metavar="NAME",
        help="flow: the density of the probability flow; path: a path integral without an ODE; "
        "bound: a variational bound; ito: the Itô estimate. Of several, the others stand beside "
        "the first, and what they differ by tells how inconsistent the model is (default: flow)",
    )
    trace = parser.add_mutually_exclusive_group()
    trace.add_argument(
        "--exact",
        action="store_true",
        help="exact trace of the Jacobian, in any dimension (default: exact up to 64 dimensions, "
        "or 0.4/tolerance if that is more)",
    )
    trace.add_argument(
        "--probes",
        type=int,
        metavar="N",
        help="random probes of the trace per evaluation (default: 2 where it is not exact)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="samples integrated together; it changes memory and how often rows are written, not "
        "the numbers (default: %(default)s)",
    )
    add_seed(parser, "the dequantization noise and the probes of every row")
    add_device(parser)
    parser.add_argument(
        "--out",
        default="likelihood.npz",
        metavar="FILE",
        help="the .npz, .csv or .parquet file to write, one row per sample (default: %(default)s)",
    )
    parser.add_argument(
        "--restart",
        action="store_true",
        help="begin anew where an interrupted run could go on (default: go on)",
    )


def run(options: Namespace) -> None:
    out = writable("--out", options.out, ".npz", ".csv", ".parquet")
    if out.suffix == ".parquet":
        need("pyarrow.parquet", "data")
    batch_size = check_integer("--batch-size", options.batch_size, 1)
    rows = open_data(options.data, options.key)
    recipe = Recipe(
        bins=bins_of(rows, options),
        trace=trace_of(options),
        tolerance=check_positive("--tolerance", options.tolerance),
        seed=options.seed,
        methods=tuple(dict.fromkeys(options.method)),
    )
    if recipe.bins is None:
        refuse_quantized(rows)
    model = read_model(options.model, options.device)
    check_events(model, rows)
    partial = Partial(
        out.with_name(f"{out.name}.partial"),
        identity(options.model, rows, recipe),
        options.restart,
    )
    done = len(partial.finished)
    if done:
        print(f"going on after row {done} of {len(rows)}, kept in {partial.path}")
    batches = records(model, rows, recipe, start=done, batch_size=batch_size, device=options.device)
    with tqdm(total=len(rows), initial=done, desc="likelihood", unit="sample") as bar:
        for finished in batches:
            partial.append(finished)
            bar.update(len(finished))
    write(out, partial.finished)
    partial.path.unlink()
    print(f"{rows.name}: {len(rows)} samples of shape {rows.shape[1:]}; {recipe}")
    print(summary(partial.finished))
    print(f"rows: {out}")


def trace_of(options: Namespace) -> Trace | None:
    """Return the trace that was asked for; None for the library's choice."""
    if options.exact:
        return ExactTrace()
    return None if options.probes is None else Hutchinson(options.probes)


def refuse_quantized(rows: Rows) -> None:
    """Raise a ``ValueError`` if float data lie on a lattice, where a density means nothing."""
    if looks_quantized(rows.read(0, 64)):
        raise ValueError(
            f"--levels: expected the number of levels of {rows.name}, whose values lie on a "
            "lattice: a density there can be arbitrarily large and bounds no probability; store "
            "the integer levels and pass --levels N"
        )


def check_events(model: ScoreModel, rows: Rows) -> None:
    """Raise a ``ValueError`` if the data have another shape than those of the training."""
    expected = tuple(model.moments.mean.shape)
    if model.moments.known and rows.shape[1:] != expected:
        raise ValueError(
            f"data: expected samples of shape {expected}, as the model was trained on, got "
            f"{rows.shape[1:]} in {rows.name}; reshape the array"
        )


def identity(model: str, rows: Rows, recipe: Recipe) -> dict[str, str]:
    """Return what tells one run from another."""
    return {
        "model": hashlib.sha256(Path(model).read_bytes()).hexdigest()[:16],
        "data": f"{rows.name} {rows.shape}",
        "settings": str(recipe),
    }


COMMAND = Command(
    name="likelihood",
    summary="put a log-likelihood with an error budget on every row of data",
    description="Compute the log-likelihood of every row of data by the probability flow, with the "
    "errors of the trace and of the integration. Finished rows are kept in OUT.partial: the same "
    "command goes on where it was stopped.",
    example="""\
  scoresde likelihood model.safetensors digits-test --out rows.npz
  scoresde likelihood model.safetensors photos/ --probes 4 --out rows.parquet
  scoresde likelihood model.safetensors points.npy --method flow path bound --out rows.csv""",
    add_options=add_options,
    run=run,
)
