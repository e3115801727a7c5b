"""``scoresde likelihood``: a model file and data → the log-likelihood of each row.

Finished rows are appended to ``OUT.partial``, one JSON array per line after a first line that
identifies the run. An interrupted run resumes after its last complete row; the result is written
when all rows are finished. The random numbers of a row are a function of the seed and the row, so
that neither the batch size nor an interruption changes the results.
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
    add_model,
    add_option,
    add_seed,
    atomic_write,
    need,
    read_model,
    writable,
)
from scoresde.commands.data import (
    DataSource,
    Quantization,
    add_data,
    open_data,
    quantization_of,
)
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

__all__ = ["COMMAND", "EvaluationSettings", "Record", "records", "summary", "write"]

_PROBES, _NOISE = 0, 1


class Record(NamedTuple):
    """One finished row: the likelihood of a sample and its errors, in nats.

    Attributes:
        others: for each further method its log_prob and its error, two standard errors plus the
            solver error; a column each in the output file.
    """

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


METHODS: dict[str, Method] = {
    "flow": FlowIntegral(),
    "path": PathIntegral(),
    "bound": VariationalBound(),
    "ito": ItoEstimate(),
}
"""Names of the methods on the command line."""


@dataclass(frozen=True)
class EvaluationSettings:
    """The settings that determine the results for a model and data.

    Attributes:
        quantization: the quantization of integer data; None for float data.
        trace: the divergence estimator; None for the default.
        tolerance: integration error of log p, in bits per dimension.
        seed: seed of the dequantization noise and the probes of every row.
        methods: names of the methods in ``METHODS``; the first gives ``log_prob``.
    """

    quantization: Quantization | None
    trace: Trace | None
    tolerance: float
    seed: int
    methods: tuple[str, ...] = ("flow",)

    def points(self, raw: Tensor, first: int) -> Tensor:
        """Return raw rows as points; the noise is a function of the seed and the row.

        Args:
            raw: consecutive rows of the data.
            first: the index of the first of them.
        """
        if self.quantization is None:
            return raw
        dequantized = [
            self.quantization.dequantize(raw[k : k + 1], self._generator(_NOISE, first + k))
            for k in range(len(raw))
        ]
        return torch.cat(dequantized)

    def probes(self, first: int) -> torch.Generator:
        """Return the generator of the probes, advanced to row ``first``."""
        generator = self._generator(_PROBES, 0)
        CounterRNG.draw(first, generator)
        return generator

    def _generator(self, purpose: int, row: int) -> torch.Generator:
        key = hashlib.blake2b(repr((self.seed, purpose, row)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)


def records(
    score: Score,
    source: DataSource,
    settings: EvaluationSettings,
    *,
    start: int,
    batch_size: int,
    device: str,
) -> Iterator[list[Record]]:
    """Yield the records of the rows from ``start`` on, in batches."""
    for first in range(start, len(source), batch_size):
        began = time.perf_counter()
        raw = source.read(first, first + batch_size)
        x = settings.points(raw, first).to(device)
        result = log_likelihood(
            score,
            x,
            trace=settings.trace,
            method=MethodComparison(tuple(METHODS[name] for name in settings.methods)),
            tolerance=settings.tolerance,
            generator=settings.probes(first),
        )
        quantization = settings.quantization
        bits = (
            result.bits_per_dim()
            if quantization is None
            else result.bits_per_dim(levels=quantization.levels, scale=quantization.scale)
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
            others(settings.methods, cast(LikelihoodComparison, result)),
        )
        yield [Record(*cells) for cells in zip(*columns, strict=True)]


def others(methods: Sequence[str], result: LikelihoodComparison) -> list[dict[str, float]]:
    """Return log_prob and error of each row by the methods except the first."""
    columns = {
        f"{name}_{part}": values.tolist()
        for name, answer in zip(methods[1:], result.results[1:], strict=True)
        for part, values in (("log_prob", answer.log_prob), ("error", answer.error))
    }
    return [{name: values[i] for name, values in columns.items()} for i in range(len(result))]


# --- the file of a run in progress


class PartialFile:
    """The rows finished so far, in an append-only file.

    Args:
        path: the file.
        run: identifies the run; a file of another run is refused.
        restart: overwrite an existing file.

    Raises:
        ValueError: if the file is of another run, or was not written by this command.
    """

    def __init__(self, path: Path, run: dict[str, str], restart: bool) -> None:
        self.path = path
        self.finished: list[Record] = []
        if path.exists() and not restart:
            self.finished = self._read(run)
        with atomic_write(path) as temporary:  # drops an incomplete last line
            temporary.write_text("".join(_line(each) for each in (run, *self.finished)))

    def append(self, records: Sequence[Record]) -> None:
        """Append rows and flush them to disk."""
        with self.path.open("a") as file:
            file.write("".join(map(_line, records)))
            file.flush()
            os.fsync(file.fileno())
        self.finished += records

    def _read(self, run: dict[str, str]) -> list[Record]:
        first, *lines = self.path.read_text().split("\n")
        try:
            stored = dict(json.loads(first))
        except (ValueError, TypeError):
            raise ValueError(
                f"--out: expected {self.path} to be a file of an interrupted run, got another file;"
                " rename it or pass --restart to overwrite it"
            ) from None
        changed = [name for name in run if stored.get(name) != run[name]]
        if changed:
            changes = ", ".join(f"{name} {stored.get(name)} (now {run[name]})" for name in changed)
            raise ValueError(
                f"--out: expected {self.path} to be a file of the same run, got one with {changes};"
                " pass --restart to overwrite it, or another --out"
            )
        return [Record(*json.loads(line)) for line in lines[:-1]]  # the last may be incomplete


def _line(value: object) -> str:
    return json.dumps(value) + "\n"


# --- results


def write(path: Path, records: Sequence[Record]) -> None:
    """Write all rows as .npz, .csv or .parquet, with a column for each field."""
    rows = [{**record._asdict(), **record.others} for record in records]
    names = [name for name in rows[0] if name != "others"]
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    with atomic_write(path) as temporary:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, **columns)  # type: ignore[arg-type]
        elif path.suffix == ".csv":
            lines = [names, *([row[name] for name in names] for row in rows)]
            temporary.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
        else:
            table = need("pyarrow", "data").table(columns)
            need("pyarrow.parquet", "data").write_table(table, temporary)


def summary(records: Sequence[Record]) -> str:
    """Return the mean with its standard error over the rows, the errors and the cost, as text."""
    n = len(records)
    bits = np.array([record.bits_per_dim for record in records])
    nats = np.array([record.log_prob for record in records])
    error = f" ± {bits.std(ddof=1) / math.sqrt(n):.4f}" if n > 1 else ""
    lines = [
        f"{bits.mean():.4f}{error} bits/dim (mean and standard error over {n} samples), mean log p "
        f"= {nats.mean():.3f} nats",
        f"largest standard error {max(r.standard_error for r in records):.2g} nats, "
        f"largest solver error {max(r.solver_error for r in records):.2g} nats, "
        f"{sum(r.converged for r in records)} of {n} converged",
        f"{np.mean([r.evaluations for r in records]):.1f} evaluations per sample, "
        f"{sum(r.seconds for r in records):.1f} s",
    ]
    for name in records[0].others:
        if name.endswith("_log_prob"):
            other = name.removesuffix("_log_prob")
            gaps = np.array([r.others[name] - r.log_prob for r in records])
            errors = [r.others[f"{other}_error"] + _error(r) for r in records]
            lines.append(
                f"{other}: log p differs by {gaps.mean():.3f} nats on average, by more than the "
                f"sum of both errors for {int((abs(gaps) > errors).sum())} of {n} samples"
            )
    return "\n".join(lines)


def _error(record: Record) -> float:
    return 2 * record.standard_error + record.solver_error


# --- the command


def add_options(parser: ArgumentParser) -> None:
    add_model(parser)
    add_data(parser)
    add_option(
        parser, "--tolerance", float, "X",
        "tolerance of the integration error of log p, in bits per dimension",
        default=1e-3,
    )  # fmt: skip
    parser.add_argument(
        "--method",
        nargs="+",
        choices=list(METHODS),
        default=["flow"],
        metavar="NAME",
        help="flow: the density of the probability flow; path: a path integral without an ODE; "
        "bound: a variational bound; ito: the Itô estimate. With several, the first gives log_prob "
        "and the others are compared with it: differences beyond the errors show that the model is "
        "no exact score (default: flow)",
    )
    trace = parser.add_mutually_exclusive_group()
    trace.add_argument(
        "--exact",
        action="store_true",
        help="exact trace of the Jacobian, in any dimension (default: exact up to 64 dimensions, "
        "or 0.4/tolerance if that is more)",
    )
    add_option(
        trace, "--probes", int, "N", "random probes of the trace per evaluation",
        default_text="2 where the trace is not exact",
    )  # fmt: skip
    add_option(
        parser, "--batch-size", int, "N",
        "samples integrated together; affects memory and how often rows are written, not the "
        "results",
        default=64,
    )  # fmt: skip
    add_seed(parser, "the dequantization noise and the probes of every row")
    add_device(parser)
    add_option(
        parser, "--out", str, "FILE",
        "the .npz, .csv or .parquet file to write, one row per sample",
        default="likelihood.npz",
    )  # fmt: skip
    parser.add_argument(
        "--restart",
        action="store_true",
        help="discard the finished rows of an interrupted run (default: resume it)",
    )


def run(options: Namespace) -> None:
    out = writable("--out", options.out, ".npz", ".csv", ".parquet")
    if out.suffix == ".parquet":
        need("pyarrow.parquet", "data")
    batch_size = check_integer("--batch-size", options.batch_size, 1)
    source = open_data(options.data, options.key)
    settings = EvaluationSettings(
        quantization=quantization_of(source, options),
        trace=trace_of(options),
        tolerance=check_positive("--tolerance", options.tolerance),
        seed=options.seed,
        methods=tuple(dict.fromkeys(options.method)),
    )
    if settings.quantization is None:
        check_not_quantized(source)
    model = read_model(options.model, options.device)
    check_event_shape(model, source)
    partial = PartialFile(
        out.with_name(f"{out.name}.partial"),
        identity(options.model, source, settings),
        options.restart,
    )
    done = len(partial.finished)
    if done:
        print(f"resuming after row {done} of {len(source)}, stored in {partial.path}")
    batches = records(
        model, source, settings, start=done, batch_size=batch_size, device=options.device
    )
    with tqdm(total=len(source), initial=done, desc="likelihood", unit="sample") as bar:
        for finished in batches:
            partial.append(finished)
            bar.update(len(finished))
    write(out, partial.finished)
    partial.path.unlink()
    print(f"{source.name}: {len(source)} samples of shape {source.shape[1:]}; {settings}")
    print(summary(partial.finished))
    print(f"rows: {out}")


def trace_of(options: Namespace) -> Trace | None:
    """Return the trace of the options; None for the default."""
    if options.exact:
        return ExactTrace()
    return None if options.probes is None else Hutchinson(options.probes)


def check_not_quantized(source: DataSource) -> None:
    """Raise a ``ValueError`` if float data are quantized: their density is not bounded."""
    if looks_quantized(source.read(0, 64)):
        raise ValueError(
            f"--levels: expected the number of levels of {source.name}, got none for quantized "
            "values: their density can be arbitrarily large and bounds no probability; store the "
            "integer levels and pass --levels N"
        )


def check_event_shape(model: ScoreModel, source: DataSource) -> None:
    """Raise a ``ValueError`` if the data have another shape than those of the training."""
    expected = tuple(model.moments.mean.shape)
    if model.moments.known and source.shape[1:] != expected:
        raise ValueError(
            f"data: expected samples of shape {expected}, as in the model's training, got "
            f"{source.shape[1:]} in {source.name}; reshape the array"
        )


def identity(model: str, source: DataSource, settings: EvaluationSettings) -> dict[str, str]:
    """Return the values that identify a run."""
    return {
        "model": hashlib.sha256(Path(model).read_bytes()).hexdigest()[:16],
        "data": f"{source.name} {source.shape}",
        "settings": str(settings),
    }


COMMAND = Command(
    name="likelihood",
    summary="compute log-likelihoods of data, with error estimates",
    description="Compute the log-likelihood of every row of data by the probability flow, with the "
    "errors of the trace estimator and of the integration. Finished rows are stored in "
    "OUT.partial: the same command resumes an interrupted run.",
    example="""\
  scoresde likelihood model.safetensors digits-test --out rows.npz
  scoresde likelihood model.safetensors photos/ --probes 4 --out rows.parquet
  scoresde likelihood model.safetensors points.npy --method flow path bound --out rows.csv""",
    add_options=add_options,
    run=run,
)
