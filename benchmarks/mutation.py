"""Mutation testing: how many small faults in the code do the tests find?

    python benchmarks/mutation.py [--sample 60] [--seconds 60] [--record FILE]
    python benchmarks/mutation.py --again FILE … [--tests …] [--out benchmarks/results]

A mutant is the code with one operator, comparison, number, truth value or loop changed (by
cosmic-ray; arithmetic operators by one another, no changes of annotations). From each part of the
library a random sample is drawn, evenly over its code. A mutant is killed if a test fails or hangs;
the tests of the default profile that execute the changed lines are run, the quick ones and those
of other files first, until one fails or they have taken a minute. A mutant that then has not been
killed is a survivor, although tests that were not run might have found it.

Reported are the killed part of the sample with its 95 % interval (Wilson), and every survivor. The
second form reads the record, runs the survivors again, against tests that were written because of
them, and writes the page, with the part killed then beside the part killed at once.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "sdes",
    "samplers",
    "traces",
    "solvers",
    "likelihood",
    "losses.py",
)
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")
OPERATORS = (
    *(
        f"ReplaceBinaryOperator_{a}_{b}"
        for a in ARITHMETIC
        for b in ARITHMETIC
        if a != b
    ),
    *(
        f"ReplaceComparisonOperator_{a}_{b}"
        for a, b in (
            ("Lt", "LtE"), ("LtE", "Lt"), ("Gt", "GtE"), ("GtE", "Gt"), ("Lt", "Gt"), ("Gt", "Lt"),
            ("LtE", "GtE"), ("GtE", "LtE"), ("Eq", "NotEq"), ("NotEq", "Eq"),
        )
    ),
    "ReplaceUnaryOperator_USub_UAdd",
    "ReplaceUnaryOperator_Delete_Not",
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "NumberReplacer",
    "ZeroIterationForLoop",
)  # fmt: skip
LEFT_OUT = (  # tests of what lies above or beside the parts
    "architecture", "benchmarks", "cli", "hostile_files", "interop", "networks", "packaging",
    "plots", "readme", "training", "tutorials", "typechecking",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: an operator, applied to one of the places where it can be, in one file."""

    path: str
    operator: str
    occurrence: int
    lines: tuple[int, int]
    before: str
    after: str

    def __str__(self) -> str:
        return f"`{self.path}:{self.lines[0]}` `{self.before.strip()}` → `{self.after.strip()}`"


# --- mutants


def plain(source: str) -> str:
    """Return the code without annotations and docstrings, to find mutants without effect."""
    tree = ast.parse(source)
    for counter in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(counter, name, None) is not None:
                setattr(counter, name, ast.Constant(None))
        body = getattr(counter, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value = ast.Constant(None)
    return ast.dump(tree)


def places(path: Path) -> list[tuple[Path, str, int, tuple[int, int]]]:
    """Return every place where an operator can be applied to a file: (file, name, which, lines)."""
    from cosmic_ray.ast import Visitor, get_ast
    from cosmic_ray.plugins import get_operator

    class TimeTable(Visitor):
        def __init__(self, operator: Any) -> None:
            self.operator, self.found = operator, []

        def visit(self, counter: Any) -> Any:
            self.found += self.operator.mutation_positions(counter)
            return counter

    tree, everything = get_ast(path.read_text(encoding="utf-8")), []
    for name in OPERATORS:
        visitor = TimeTable(get_operator(f"core/{name}")())
        visitor.walk(tree)
        for which, ((first, _), (last, _)) in enumerate(visitor.found):
            everything.append((path, name, which, (first, last)))
    return everything


def mutated(source: str, operator: str, occurrence: int) -> str:
    """Return the source with one place changed."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    return mutate_code(source, get_operator(f"core/{operator}")(), occurrence)


def make(path: Path, operator: str, occurrence: int, lines: tuple[int, int]) -> Mutant | None:
    """Return the mutant, or None if it is no code or the same."""
    source = path.read_text(encoding="utf-8")
    changed = mutated(source, operator, occurrence)
    try:
        if changed is None or plain(changed) == plain(source):
            return None
    except SyntaxError:
        return None
    pairs = zip(source.split("\n"), changed.split("\n"), strict=False)
    before, after = next(pair for pair in pairs if pair[0] != pair[1])
    return Mutant(str(path.relative_to(ROOT)), operator, occurrence, lines, before, after)


def draw(part: str, count: int, seed: int) -> tuple[list[Mutant], int]:
    """Return a sample of the mutants of a part, and the number of possible ones."""
    path = ROOT / "scoresde" / part
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    everything = [each for file in files for each in places(file)]
    random.Random(f"{seed} {part}").shuffle(everything)
    chosen: list[Mutant] = []
    for each in everything:
        if len(chosen) == count:
            break
        mutant = make(*each)
        if mutant is not None:
            chosen.append(mutant)
    return chosen, len(everything)


# --- tests, in a copy of the repository and in processes of their own


def copy(where: Path) -> Path:
    """Copy what the tests need, and return the copy's root."""
    root = where / "main"
    ignored = shutil.ignore_patterns("__pycache__", ".cache")
    for name in ("scoresde", "tests", "benchmarks", "tutorials"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CITATION.cff", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    concatenate = ROOT.parent / "shared"
    if concatenate.is_dir():
        (where / "shared").symlink_to(concatenate)
    return root


def test_files(root: Path) -> list[str]:
    """Return the test files that concern the parts."""
    names = sorted(path.name for path in (root / "tests").glob("test_*.py"))
    chosen = [name for name in names if not any(f"test_{out}" in name for out in LEFT_OUT)]
    modules = [
        str(path.relative_to(root))
        for part in PARTS
        for path in sorted((root / "scoresde").glob(f"{part}/*.py" if "." not in part else part))
    ]
    return [*(f"tests/{name}" for name in chosen), *modules]


class Mapper:
    """Notes how long each test takes, and which lines of the parts it executes."""

    def __init__(self, root: Path) -> None:
        import coverage

        self.root = root
        self.seconds: dict[str, float] = {}
        self.coverage = coverage.Coverage(data_file=None, source=[str(root / "scoresde")])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        """Run one test under a context of its own."""
        self.coverage.switch_context(item.nodeid)
        began = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - began
        return result

    def lines(self) -> dict[str, dict[int, list[str]]]:
        """Return the tests that execute each line of each file."""
        data = self.coverage.get_data()
        return {
            str(Path(file).relative_to(self.root)): {
                line: [name for name in names if name]
                for line, names in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }


class Chosen:
    """Keeps the chosen tests alone, in the order given."""

    def __init__(self, names: Sequence[str]) -> None:
        self.order = {name: i for i, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Sort and select."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self.order),
            key=lambda item: self.order[item.nodeid],
        )


def run_pytest(root: Path, arguments: list[str], plugin: object) -> int:
    """Run pytest in this process, on the copy."""
    os.chdir(root)
    sys.path[:] = [str(root), str(root / "tests"), *sys.path]
    quiet = ["-q", "--no-header", "-p", "no:cacheprovider", "--timeout", "0", "-p", "no:xdist"]
    quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*quiet, *arguments], plugins=[plugin]))


def in_child(work: Any, seconds: float, output: Path) -> int | None:
    """Run ``work() -> int`` in a forked process; None if it takes too long."""
    child = os.fork()
    if child == 0:
        os.setsid()
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = 70
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def map_tests(root: Path, where: Path, chosen: Sequence[str] = ()) -> dict[str, Any]:
    """Run all tests once, or those chosen: return their times and the lines that each executes."""
    target = where / "map.json"

    def work() -> int:
        mapper = Mapper(root)
        mapper.coverage.start()
        code = run_pytest(root, list(chosen) or test_files(root), mapper)
        mapper.coverage.stop()
        target.write_text(json.dumps({"seconds": mapper.seconds, "lines": mapper.lines()}))
        return code

    code = in_child(work, 7200, where / "map.log")
    if code != 0:
        raise RuntimeError(f"the tests fail without any mutant, see {where / 'map.log'}")
    return json.loads(target.read_text())


def tests_for(mutant: Mutant, known: dict[str, Any], seconds: float) -> tuple[list[str], float]:
    """Return the tests that execute the mutant's lines, and how long they take.

    Quick tests come first; the second case of a test function counts as twice as slow, and so on.
    """
    lines = known["lines"].get(mutant.path, {})
    touched = range(mutant.lines[0], mutant.lines[1] + 1)
    names = {name for line in touched for name in lines.get(str(line), [])}
    if not names:  # executed when the module is imported; the record of the interface sees that
        names = {name for tests in lines.values() for name in tests}
        names |= {name for name in known["seconds"] if name.startswith("tests/test_interface.py")}
    cases: dict[str, int] = {}
    turns = []
    for name in sorted(names, key=known["seconds"].__getitem__):
        function = name.split("[")[0]
        cases[function] = cases.get(function, 0) + 1
        turns.append((cases[function] * known["seconds"][name], name))
    chosen, total = [], 0.0
    for _, name in sorted(turns):
        total += known["seconds"][name]
        if total > seconds and chosen:
            break
        chosen.append(name)
    return chosen, total


def judge(mutant: Mutant, root: Path, known: dict[str, Any], seconds: float) -> str:
    """Return what became of a mutant: killed, hangs (killed too), survived or untested."""
    names, expected = tests_for(mutant, known, seconds)
    if not names:
        return "untested"
    file = root / mutant.path
    original, stat = file.read_text(encoding="utf-8"), file.stat()
    hidden = list((file.parent / "__pycache__").glob(f"{file.stem}.*"))
    for compiled in hidden:
        compiled.rename(compiled.with_suffix(".hidden"))
    file.write_text(mutated(original, mutant.operator, mutant.occurrence), encoding="utf-8")
    try:
        files = list(dict.fromkeys(name.split("::")[0] for name in names))

        def work() -> int:
            sys.dont_write_bytecode = True
            return run_pytest(root, ["-x", *files], Chosen(names))

        code = in_child(work, 60 + 10 * expected, root.parent / "mutant.log")
    finally:
        file.write_text(original, encoding="utf-8")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        for compiled in hidden:
            compiled.with_suffix(".hidden").rename(compiled)
    return "hangs" if code is None else "survived" if code == 0 else "killed"


# --- report


def interval(killed: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a proportion."""
    p, n = killed / count, count
    center, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (center - half) / (1 + z**2 / n), (center + half) / (1 + z**2 / n)


def report(
    outcomes: dict[str, list[tuple[Mutant, str]]], sizes: dict[str, int], tests: Sequence[str]
) -> str:
    """Return the page."""
    rows = []
    for part, results in outcomes.items():
        killed = sum(what in ("killed", "hangs") for _, what in results)
        since = sum(what == "killed since" for _, what in results)
        low, high = interval(killed, len(results))
        rows.append(
            f"| `{part}` | {sizes[part]} | {len(results)} | {killed} | "
            f"{100 * killed / len(results):.0f} % ({100 * low:.0f}–{100 * high:.0f} %) | "
            f"{killed + since} ({100 * (killed + since) / len(results):.0f} %) |"
        )
    lines = [
        f"# {__doc__.splitlines()[0]}\n",
        __doc__.split("\n\n", 2)[2],
        f"Tests: {', '.join(f'`{name}`' for name in tests) or 'all that concern these parts'}.\n",
        "| part | places | tried | killed at once | part (95 % interval) | killed by now |",
        "|---|---|---|---|---|---|",
        *rows,
        "\n## Survivors\n",
    ]
    lines += [
        f"- {mutant} ({what})"
        for results in outcomes.values()
        for mutant, what in results
        if what in ("survived", "untested")
    ]
    return "\n".join(lines) + "\n"


def preload() -> None:
    """Import what every child needs, once."""
    import beartype  # noqa: F401
    import hypothesis  # noqa: F401
    import jaxtyping  # noqa: F401
    import numpy  # noqa: F401
    import scipy.integrate  # noqa: F401
    import torch

    torch.set_num_threads(1)


def recorded(files: Sequence[Path]) -> dict[str, list[tuple[Mutant, str]]]:
    """Return what became of mutants, by part, as earlier runs have recorded it."""
    outcomes: dict[str, list[tuple[Mutant, str]]] = {}
    for line in (line for file in files for line in file.read_text().splitlines()):
        record = json.loads(line)
        part, what = record.pop("part"), record.pop("what")
        mutant = Mutant(**{**record, "lines": tuple(record["lines"])})
        outcomes.setdefault(part, []).append((mutant, what))
    return outcomes


def try_again(
    outcomes: dict[str, list[tuple[Mutant, str]]], root: Path, known: dict[str, Any], most: float
) -> None:
    """Try the survivors, where the code is still the same, against the tests there are now."""
    for results in outcomes.values():
        for i, (old, what) in enumerate(results):
            new = make(ROOT / old.path, old.operator, old.occurrence, old.lines)
            same = new is not None and (new.before, new.after) == (old.before, old.after)
            if what == "survived" and same:
                now = judge(old, root, known, most)
                results[i] = (old, "killed since" if now in ("killed", "hangs") else what)
                print(f"{now} now: {old}", flush=True)


def main() -> None:
    """Draw, try, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sample", type=int, default=60, help="mutants of each part")
    parser.add_argument("--seconds", type=float, default=60.0, help="of tests for each mutant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="+", default=[], help="files; all if left out")
    parser.add_argument("--map", type=Path, help="of tests to lines, from an earlier run")
    parser.add_argument("--record", type=Path, help="file that outcomes are appended to")
    parser.add_argument("--again", type=Path, nargs="+", default=[], help="records to go on from")
    parser.add_argument("--out", type=Path, help="folder for the page; printed only if left out")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    preload()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        root = copy(where)
        known = json.loads(options.map.read_text()) if options.map else None
        known = known or map_tests(root, where, options.tests)
        outcomes = recorded(options.again)
        try_again(outcomes, root, known, options.seconds)
        sizes = {part: draw(part, 0, options.seed)[1] for part in PARTS}
        for part in [] if options.again else options.only:
            chosen, _ = draw(part, options.sample, options.seed)
            outcomes[part] = []
            for mutant in chosen:
                began = time.perf_counter()
                what = judge(mutant, root, known, options.seconds)
                outcomes[part].append((mutant, what))
                print(f"{what} in {time.perf_counter() - began:.0f} s: {mutant}", flush=True)
                if options.record:
                    with options.record.open("a") as file:
                        file.write(
                            json.dumps({**asdict(mutant), "part": part, "what": what}) + "\n"
                        )
    page = report(outcomes, sizes, options.tests)
    print(page)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mutation.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
