"""``scoresde check``: the properties that an SDE, a score, a sampler, … of yours must have."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from scoresde._core.checks import check_integer, check_integers, summarize
from scoresde.commands.base import Command, add_seed, need

__all__ = ["COMMAND"]

_BROKEN = 1
"""Exit code if a property does not hold."""

_ADAPTERS = {
    ("score", "x", "t", "s", "noise"): "FunctionSampler(function)",
    ("score", "x", "times", "noise"): "LoopSampler(function)",
    ("field", "z", "start", "end", "tolerance"): "FunctionSolver(function)",
    ("field", "x", "noise"): "FunctionTrace(function)",
    ("score", "x"): "FunctionMethod(function)",
    ("x", "t"): "FunctionScore(function, sde), or FunctionSDE(drift, diffusion)",
    ("t",): "FunctionGaussianSDE(alpha, sigma), or FunctionSDE(drift, diffusion)",
}
"""The adapter for a function with these arguments."""


# --- the object


def find(target: str) -> Any:
    """Return the object that ``module:object`` names.

    Args:
        target: a module, dotted or the path of a file, and a name in it.

    Returns:
        The object.

    Raises:
        ValueError: if there is no such object, or the module fails.

    Example:
        >>> find("scoresde.sdes:VPSDE")
        <class 'scoresde.sdes.variance_preserving.VPSDE'>
    """
    module, colon, name = target.rpartition(":")
    if not (module and colon and name):
        raise ValueError(
            f"OBJECT: expected module:object, such as my_sde:MySDE for MySDE in my_sde.py, got "
            f"{target!r}"
        )
    found: Any = _module(module)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"OBJECT: expected a name in {module}, got {name!r}; it has {_names(found)}"
            )
        found = getattr(found, part)
    return found


def _module(name: str) -> ModuleType:
    """Import a module, from the current folder too; the error names the line that fails."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return _run_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and name.split(".")[0] == missing:
            raise ValueError(
                f"OBJECT: expected a module that can be imported, got {name!r}, which is not "
                f"found from {Path.cwd()}; go to its folder, or name the file: path/to/file.py:…"
            ) from None
        *_, last = traceback.extract_tb(error.__traceback__)
        where = f"{last.filename}:{last.lineno}"
        raise ValueError(
            f"OBJECT: expected a module that can be imported, but {name!r} fails with "
            f"{type(error).__name__}: {error} ({where})"
        ) from error


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path} in {Path.cwd()}")
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _names(found: object) -> str:
    """The public names defined there."""
    own = getattr(found, "__name__", None)
    names = [
        name
        for name, value in vars(found).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", own) == own
    ]
    return ", ".join(names[:12]) or "no names of its own"


def member(found: Any, family_of: Callable[[object], Any]) -> Any:
    """Return an object of a family: the object, the result of a class or function, or adapted.

    Args:
        found: an object, or a class or function that returns one without arguments.
        family_of: :func:`scoresde.testing.family_of`.

    Returns:
        The object of a family.

    Raises:
        TypeError: if it belongs to no family.
    """
    if inspect.isroutine(found) or inspect.isclass(found):
        found = _made(found)
    if hasattr(found, "noise_type") and hasattr(found, "f") and not hasattr(found, "t_min"):
        from scoresde.testing.adapters import FromTorchSDE

        return FromTorchSDE(found)  # before its suite is looked up, as it may be an nn.Module
    try:
        family_of(found)
    except TypeError:
        from scoresde.testing.adapters import SchedulerSampler

        if hasattr(found, "set_timesteps") and hasattr(found, "add_noise"):
            return SchedulerSampler(found)
        raise TypeError(
            f"OBJECT: expected an SDE, a Score, a Sampler, a Solver, a Trace, a likelihood "
            f"Method or a network, got {summarize(found)}; derive from one of them, or wrap it in "
            "an adapter of scoresde.testing.adapters"
        ) from None
    return found


def _made(maker: Any) -> Any:
    """Call a class or a function that needs no arguments."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except ValueError:  # written in C
        parameters = ()  # type: ignore[assignment]
    needed = tuple(
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    if needed:
        name = getattr(maker, "__name__", "it")
        hint = _ADAPTERS.get(needed, "")
        hint = (
            f"scoresde.testing.adapters has {hint.replace('function', name)}"
            if hint and not inspect.isclass(maker)
            else f"write a line such as checked = {name}(…) and name that"
        )
        raise TypeError(
            f"OBJECT: expected an object, or a class or function without arguments, got {name}"
            f"({', '.join(needed)}); {hint}"
        )
    try:
        return maker()
    except Exception as error:
        raise ValueError(
            f"OBJECT: expected {getattr(maker, '__name__', maker)}() to make an object, but it "
            f"fails with {type(error).__name__}: {error}"
        ) from error


# --- the command


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "object",
        metavar="OBJECT",
        help="module:object or file.py:object: an SDE, score, sampler, solver, trace, likelihood "
        "method or network, or a class or function that returns one without arguments",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PROPERTY",
        help="names of the properties to check (default: all)",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the properties with their formulas, and check none (default: check them)",
    )
    parser.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help="number of cases of each property (default: enough for seconds in all)",
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="N",
        help="shape of one sample, for a score or network that takes no other (default: its "
        "attribute event_shape, or any)",
    )
    add_seed(parser, "the cases")


def run(options: Namespace) -> int:
    need("hypothesis", "testing")
    from scoresde.testing import family_of
    from scoresde.testing.properties import title

    subject = member(find(options.object), family_of)
    family = family_of(subject)
    chosen = [each for each in family.chosen(options.only) if each.applies(subject)]
    print(f"{title(subject)}: properties of {family.noun}s")
    if options.list:
        for each in chosen:
            print(f"  {each.name}\n      {each.statement}")
        return 0
    fixed = (
        {}
        if options.shape is None
        else {"event_shape": check_integers("--shape", options.shape, minimum=1)}
    )
    check_integer("--seed", options.seed, minimum=0)
    if options.examples is not None:
        check_integer("--examples", options.examples, minimum=1)
    found, count = [], 0
    for result in family.results(
        subject, seed=options.seed, examples=options.examples, only=options.only, fixed=fixed
    ):
        verdict = "passed" if result.counterexample is None else "FAILED"
        measured = "" if result.measured is None else f": measured {result.measured:.3g}"
        print(f"  {verdict}  {result.checked.name}{measured}", flush=True)
        found += [] if result.counterexample is None else [result.counterexample]
        count += 1
    print("", *_summary(found, count), sep="\n")
    if count < len(chosen):
        print(f"{len(chosen) - count} others were not checked, as they need this one.")
    crashed = [each for each in found if not isinstance(each.error, AssertionError)]
    if options.shape is None and any("event_shape" in each.case for each in crashed):
        print("If it takes samples of one shape only, pass it: --shape 3 32 32")
    return _BROKEN if found else 0


def _summary(found: Sequence[Any], count: int) -> list[str]:
    if not found:
        return [f"Checked {count}: no counterexample was found."]
    reports: dict[str, list[Any]] = {}
    for each in found:  # one exception, raised by several properties, is reported once
        own = isinstance(each.error, AssertionError)
        reports.setdefault(each.broken.name if own else repr(each.error), []).append(each)
    lines = []
    for first, *others in reports.values():
        same = ", ".join(each.broken.name for each in others)
        lines += [f"{first}\n    {'same':8} {same}\n" if same else f"{first}\n"]
    advice = " Fix the first and check again: one mistake often violates several." * (
        len(found) > 1
    )
    return [*lines, f"Checked {count}: {len(found)} failed.{advice}"]


COMMAND = Command(
    name="check",
    summary="check that your SDE, score, sampler, … has the properties of its family",
    description=(
        "Check that an object of yours has the properties of its family: an SDE, a score, a "
        "sampler, a solver, a trace, a likelihood method or a network. For each property that does "
        "not hold, the simplest counterexample is printed, with the values there and the usual "
        "causes. The exit code is 0 if all hold, 1 if one does not, 2 if there is nothing to "
        "check. The module is executed: check only what you trust."
    ),
    example="""\
  scoresde check my_sde:MySDE
  scoresde check path/to/my_sampler.py:my_sampler --only "convergence order" --examples 5
  scoresde check scoresde:VPSDE --list""",
    add_options=add_options,
    run=run,
)
