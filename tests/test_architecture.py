"""The architecture of the package: layers, types, names, extension points, documentation.

The rules are functions from source text to violations, so that they are themselves tested on
small sources that break them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path

import pytest
from torch import nn

PACKAGE = "scoresde"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

LAYERS = (  # lowest first: a package imports from its own layer and from those below
    {"_core"},
    {"sdes", "networks", "solvers", "traces", "operators", "dequantization"},
    {"scores"},
    {"flow"},
    {"samplers", "likelihood", "training"},
    {"guidance", "inverse_problems", "interop", "testing", "diagnostics", "plots"},
    {"commands"},
    {"__init__", "__main__"},
)
INDEPENDENT = {1, 4}  # layers whose packages never import each other
SEPARATE = {("inverse_problems", "guidance")}  # (importer, imported): further forbidden pairs

EXTENSION_POINTS = {  # what users bring: check_instance may require one of these, and nothing else
    "Coordinates",
    "Dequantization",
    "GaussianMeasurement",
    "GaussianSDE",
    "Grid",
    "LinearOperator",
    "Measurement",
    "Method",
    "Observation",
    "PosteriorSampler",
    "PosteriorScore",
    "Prediction",
    "ProbeDistribution",
    "SDE",
    "Sampler",
    "Score",
    "Solver",
    "Tableau",
    "TimeSampler",
    "Trace",
}
OPTIONAL = {"hypothesis", "matplotlib", "PIL", "pyarrow", "pytest", "sklearn", "torchdiffeq"}
CHECKS = f"{PACKAGE}._core.checks"  # holds the one isinstance, inside check_instance


def derived_from(*bases: str) -> Callable[[type], bool]:
    """A predicate: whether a class derives from one of ``package.Class`` of this library."""

    def is_member(thing: type) -> bool:
        found = (base.rpartition(".") for base in bases)
        modules = ((importlib.import_module(f"{PACKAGE}.{home}"), name) for home, _, name in found)
        return issubclass(thing, tuple(getattr(module, name) for module, name in modules))

    return is_member


def is_network(thing: type) -> bool:
    """Whether a class is a network as scores call it: a module of ``(x, label)``."""
    if not issubclass(thing, nn.Module):
        return False
    return list(inspect.signature(thing.forward).parameters)[1:3] == ["x", "label"]


FAMILIES: dict[str, Callable[[type], bool]] = {  # open families: package -> what is a member
    "sdes": derived_from("sdes.SDE"),
    "networks": is_network,
    "solvers": derived_from("solvers.Solver"),
    "traces": derived_from("traces.Trace"),
    "samplers": derived_from("samplers.Sampler"),
    "likelihood": derived_from("likelihood.Method"),
    "guidance": derived_from("scores.Score"),
    "inverse_problems": derived_from(
        "inverse_problems.PosteriorSampler",
        "inverse_problems.PosteriorScore",
        "inverse_problems.Measurement",
        "samplers.Sampler",
    ),
}


# --- reading a source


@dataclass(frozen=True)
class Source:
    """One module: its dotted name, its text, and whether it is a package's ``__init__``."""

    name: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def package(self) -> str:
        """The file or folder directly under the root package that this module belongs to."""
        return (self.name.split(".") + ["__init__"])[1]


def sources() -> list[Source]:
    """Every module of the package."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found.append(Source(name, path.read_text(encoding="utf-8"), is_package))
    return found


def bindings(source: Source) -> Iterator[tuple[str, str]]:
    """Yield (local name, dotted origin) of each import, wherever it stands."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parents = source.name.split(".")
                depth = len(parents) - node.level + source.is_package
                origin = ".".join([*parents[:depth], *([origin] if origin else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{origin}.{alias.name}"


def imported_packages(source: Source, packages: set[str]) -> set[str]:
    """The packages that a module imports from; ``__init__`` stands for the root itself."""
    found = set()
    for _, origin in bindings(source):
        root, _, inside = origin.partition(".")
        if root == PACKAGE:
            package = inside.split(".")[0]
            found.add(package if package in packages else "__init__")
    return found


def classes(modules: Iterable[Source]) -> Iterator[tuple[str, str]]:
    """Yield (class name, module name) of each class, wherever it is defined."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                yield node.name, module.name


# --- layers: imports go down only


def layer_of(package: str) -> int:
    for height, layer in enumerate(LAYERS):
        if package in layer:
            return height
    raise AssertionError(f"{package} has no layer: add it to one of LAYERS")


def import_violations(modules: list[Source]) -> list[str]:
    packages = {module.package for module in modules}
    imports: dict[str, set[str]] = {package: set() for package in packages}
    found = []
    for module in modules:
        here = layer_of(module.package)
        for package in sorted(imported_packages(module, packages) - {module.package}):
            imports[module.package].add(package)
            there = layer_of(package)
            if there > here:
                found.append(f"{module.name} imports {package}, which is above it")
            elif there == here and here in INDEPENDENT:
                found.append(f"{module.name} imports {package}, of the same layer")
            elif (module.package, package) in SEPARATE:
                found.append(f"{module.name} imports {package}, which it must not depend on")
    return found + [f"{package} imports itself through others" for package in cycles(imports)]


def cycles(imports: dict[str, set[str]]) -> list[str]:
    """The packages that import themselves, directly or through others."""

    def reachable(package: str) -> set[str]:
        seen: set[str] = set()
        waiting = [package]
        while waiting:
            new = imports[waiting.pop()] - seen
            seen |= new
            waiting.extend(new)
        return seen

    return sorted(package for package in imports if package in reachable(package))


def private_import_violations(modules: list[Source]) -> list[str]:
    """Private names, and names of private modules, that another package imports."""
    found = []
    for module in modules:
        for _, origin in bindings(module):
            root, *inside = origin.split(".")
            if root != PACKAGE or not inside or inside[0] == module.package:
                continue
            if any(part[0] == "_" and not part.startswith("__") for part in inside[1:]):
                found.append(f"{module.name} imports {origin}, private to {inside[0]}")
    return found


# --- names: one name, one thing


def name_violations(modules: list[Source]) -> list[str]:
    """Class names, public or private, that more than one module defines."""
    homes: dict[str, list[str]] = {}
    for name, module in classes(modules):
        homes.setdefault(name, []).append(module)
    return [
        f"{name} is defined in {' and in '.join(sorted(where))}"
        for name, where in sorted(homes.items())
        if len(where) > 1
    ]


# --- types: behavior never depends on the type of our own objects


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name or attribute expression, otherwise empty."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (head := dotted(node.value)):
        return f"{head}.{node.attr}"
    return ""


def origin_of(name: str, bound: dict[str, str]) -> str:
    """The dotted origin of a local dotted name, through the module's imports."""
    head, _, rest = name.partition(".")
    origin = bound.get(name) or bound.get(head, head)
    return origin if name in bound or not rest else f"{origin}.{rest}"


def types_compared(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the class expressions that a source compares a type with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if dotted(node.func) in ("isinstance", "issubclass") and len(node.args) == 2:
                yield from alternatives(node.args[1])
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Call) and dotted(side.func) == "type" for side in sides):
                yield from (part for side in sides for part in alternatives(side))
        elif isinstance(node, ast.MatchClass):
            yield node.cls


def alternatives(node: ast.expr) -> list[ast.expr]:
    """The members of ``(A, B)`` or ``A | B``, or the expression alone."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return [part for element in node.elts for part in alternatives(element)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return alternatives(node.left) + alternatives(node.right)
    return [node]


def required_types(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the class expressions that a source passes to ``check_instance``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "check_instance":
            options = {option.arg: option.value for option in node.keywords}
            yield options["kind"] if "kind" in options else node.args[2]


def type_violations(modules: list[Source]) -> list[str]:
    ours = {name for name, _ in classes(modules)}
    found = []
    for module in modules:
        if module.name == CHECKS:
            continue
        bound, local = dict(bindings(module)), {name for name, _ in classes([module])}
        compared = [
            (expression, "compares a type with") for expression in types_compared(module.tree)
        ]
        required = [(expression, "requires the type") for expression in required_types(module.tree)]
        for expression, verb in compared + required:
            name = dotted(expression)
            origin = origin_of(name, bound)
            leaf = origin.rpartition(".")[2]
            is_ours = leaf in ours and (name in local or origin.startswith(f"{PACKAGE}."))
            is_ours = is_ours and not leaf.endswith("Error")  # exceptions are caught by their type
            if is_ours and not (verb.startswith("requires") and leaf in EXTENSION_POINTS):
                found.append(f"{module.name}:{expression.lineno} {verb} {leaf}")
    return found


# --- files are data, never code


def loading_violations(module: Source) -> list[str]:
    bound = dict(bindings(module))
    found = [
        f"{module.name} imports {origin}"
        for origin in bound.values()
        if origin.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
    ]
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = origin_of(dotted(node.func), bound)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{module.name}:{node.lineno} calls torch.load without weights_only=True")
        if name == "numpy.load" and options.get("allow_pickle", "False") != "False":
            found.append(f"{module.name}:{node.lineno} calls numpy.load with pickles")
    return found


# --- what is public is documented


def undocumented(name: str, thing: object) -> list[str]:
    """The name, and for a class its public methods, where no docstring is written or inherited."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return []
    written = thing.__doc__ or ""
    if is_dataclass(thing) and written.startswith(f"{thing.__name__}("):  # made by @dataclass
        written = ""
    found = [] if written.strip() else [name]
    if inspect.isclass(thing):
        found += [
            f"{name}.{attribute}"
            for attribute, member in vars(thing).items()
            if not attribute.startswith("_")
            and (inspect.isroutine(member) or isinstance(member, property))
            and not any(
                (vars(base)[attribute].__doc__ or "").strip()
                for base in thing.__mro__
                if attribute in vars(base)
            )
        ]
    return found


# --- open families: a member is one new file and one line in the package's __init__


def defined_in(package: str, modules: list[Source]) -> dict[str, type]:
    """The classes that the modules of a package define at their top level."""
    return {
        node.name: getattr(importlib.import_module(module.name), node.name)
        for module in modules
        if module.package == package
        for node in module.tree.body
        if isinstance(node, ast.ClassDef)
    }


def unexported(
    defined: dict[str, type], exported: Iterable[str], is_member: Callable[[type], bool]
) -> list[str]:
    """The public, concrete members of a family that its package does not export."""
    return [
        name
        for name, thing in defined.items()
        if not name.startswith("_") and not inspect.isabstract(thing)
        if is_member(thing) and name not in exported
    ]


# --- the package itself


def test_imports_go_down_only() -> None:
    assert import_violations(sources()) == []


def test_private_names_stay_in_their_package() -> None:
    assert private_import_violations(sources()) == []


def test_each_class_has_a_name_of_its_own() -> None:
    assert name_violations(sources()) == []


def test_behavior_never_depends_on_our_own_types() -> None:
    assert type_violations(sources()) == []


def test_import_loads_no_optional_package() -> None:
    """``import scoresde`` takes little longer than ``import torch``."""
    code = f"import sys, {PACKAGE}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert PACKAGE in run.stdout.split()
    assert OPTIONAL & set(run.stdout.split()) == set()


def test_files_are_data_never_code() -> None:
    assert [line for module in sources() for line in loading_violations(module)] == []


@pytest.mark.parametrize("package", FAMILIES)
def test_members_are_exported(package: str) -> None:
    exported = importlib.import_module(f"{PACKAGE}.{package}").__all__
    defined = defined_in(package, sources())
    assert any(map(FAMILIES[package], defined.values()))
    assert unexported(defined, exported, FAMILIES[package]) == []


@pytest.mark.parametrize(
    "name", [module.name for module in sources() if module.package != "__main__"]
)
def test_public_names_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    public = getattr(module, "__all__", [])
    missing = [each for each in public if not hasattr(module, each)]
    assert missing == []
    assert [each for own in public for each in undocumented(own, getattr(module, own))] == []


# --- the rules can fail


def package(**texts: str) -> list[Source]:
    """A package from the texts of its modules; ``a__b`` is the module b in the folder a."""
    return [
        Source(
            PACKAGE if name == "root" else f"{PACKAGE}.{name.replace('__', '.')}",
            text,
            name == "root",
        )
        for name, text in texts.items()
    ]


@pytest.mark.parametrize(
    ("texts", "violation"),
    [
        (
            {"sdes": "import scoresde.scores", "scores": ""},
            "scoresde.sdes imports scores, which is above",
        ),
        ({"sdes": "from scoresde import scores as s", "scores": ""}, "scores, which is above"),
        ({"sdes": "from .scores import Score", "scores": ""}, "scores, which is above"),
        ({"sdes__vp": "from ..scores import Score", "scores": ""}, "sdes.vp imports scores"),
        (
            {"sdes": "def f():\n    from scoresde.scores import Score", "scores": ""},
            "which is above",
        ),
        (
            {"sdes": "if TYPE_CHECKING:\n    from scoresde.scores import Score", "scores": ""},
            "which is above",
        ),
        (
            {"sdes__vp": "from scoresde.networks import MLP", "networks": ""},
            "networks, of the same layer",
        ),
        (
            {"likelihood": "from scoresde import samplers", "samplers": ""},
            "samplers, of the same layer",
        ),
        (
            {"inverse_problems": "from scoresde import guidance", "guidance": ""},
            "guidance, which it must not depend on",
        ),
        ({"_core__checks": "from scoresde.sdes import SDE", "sdes": ""}, "checks imports sdes"),
        ({"sdes": "from scoresde import VPSDE", "root": ""}, "sdes imports __init__"),
        ({"sdes": "import scoresde", "root": ""}, "sdes imports __init__"),
        (
            {
                "interop": "from scoresde.testing.checks import A",
                "testing": "import scoresde.interop",
            },
            "testing imports itself through others",
        ),
    ],
)
def test_a_forbidden_import_is_found(texts: dict[str, str], violation: str) -> None:
    assert violation in "\n".join(import_violations(package(**texts)))


def test_an_allowed_import_is_not() -> None:
    modules = package(
        _core__shapes="import torch",
        _core__checks="from scoresde._core.shapes import expand",
        sdes__base="from scoresde._core.shapes import expand",
        sdes__vp="from .base import SDE\nfrom scoresde.sdes.base import SDE",
        scores="from scoresde import sdes, _core",
        flow="from scoresde.scores import Score",
        samplers="from scoresde.scores import Score\nimport scoresde_other.likelihood",
        guidance="import scoresde.samplers",
        interop="import scoresde.guidance",
        root="from scoresde.training.losses import dsm_loss",
    )
    assert import_violations(modules) == []


def test_a_package_without_a_layer_is_found() -> None:
    with pytest.raises(AssertionError, match="cellar has no layer"):
        import_violations(package(cellar=""))


@pytest.mark.parametrize(
    "text",
    [
        "from scoresde.sdes.base import _solver_time",
        "from scoresde.sdes import _tables",
        "from scoresde.sdes._tables import Table",
        "import scoresde.sdes._tables",
        "def f():\n    from ..sdes.base import _solver_time",
    ],
)
def test_a_private_import_is_found(text: str) -> None:
    assert len(private_import_violations(package(scores__base=text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from scoresde.scores.model import _take",
        "from scoresde._core.shapes import expand",
        "from scoresde.sdes.base import SDE",
        "from torch import _C",
    ],
)
def test_other_imports_are_not_private(text: str) -> None:
    assert private_import_violations(package(scores__base=text)) == []


def test_two_classes_of_one_name_are_found() -> None:
    modules = package(
        sdes__a="class Table: ...\nclass _Row: ...\nclass A: ...",
        sdes__b="class _Row: ...",
        scores="def f():\n    class Table: ...",
    )
    assert name_violations(modules) == [
        "Table is defined in scoresde.scores and in scoresde.sdes.a",
        "_Row is defined in scoresde.sdes.a and in scoresde.sdes.b",
    ]


@pytest.mark.parametrize(
    "comparison",
    [
        "isinstance(sde, VPSDE)",
        "isinstance(sde, (int, VPSDE))",
        "isinstance(sde, int | VPSDE)",
        "isinstance(sde, sdes.VPSDE)",
        "issubclass(sde, Renamed)",
        "type(sde) is VPSDE",
        "type(sde) in (VPSDE, int)",
        "isinstance(sde, Local)",
        "scoresde.sdes.VPSDE is type(sde)",
        "check_instance('sde', sde, VPSDE, 'VPSDE()')",
        "checks.check_instance('sde', sde, kind=Renamed, example='VPSDE()')",
    ],
)
def test_a_comparison_of_types_is_found(comparison: str) -> None:
    text = (
        "import scoresde.sdes\nfrom scoresde import sdes\nfrom scoresde.sdes import VPSDE\n"
        f"from scoresde.sdes import VPSDE as Renamed\nclass Local: ...\nx = {comparison}"
    )
    modules = package(sdes="class VPSDE: ...", scores=text)
    assert len(type_violations(modules)) == 1


def test_an_extension_point_may_be_required() -> None:
    text = "from scoresde.sdes import SDE\ncheck_instance('sde', sde, SDE, 'VPSDE()')"
    modules = package(sdes="class SDE: ...", scores=text)
    assert type_violations(modules) == []
    refused = "from scoresde.sdes import SDE\nif not isinstance(sde, SDE):\n    raise TypeError"
    assert len(type_violations(package(sdes="class SDE: ...", scores=refused))) == 1


def test_a_type_pattern_is_found() -> None:
    text = "from scoresde.sdes import VPSDE\nmatch sde:\n    case VPSDE(): pass"
    assert len(type_violations(package(sdes="class VPSDE: ...", scores=text))) == 1


def test_comparing_with_types_of_others_is_allowed() -> None:
    text = (
        "from torch.distributions import Uniform\nimport torch\n"
        "isinstance(x, Uniform), isinstance(x, torch.Tensor), isinstance(x, (int, float))"
    )
    assert type_violations(package(training="class Uniform: ...", scores=text)) == []


def test_comparing_with_exceptions_is_allowed() -> None:
    text = "class SamplingError(RuntimeError): ...\nisinstance(error, SamplingError)"
    assert type_violations(package(samplers=text)) == []


def test_an_unexported_member_is_found() -> None:
    class Base(ABC):
        @abstractmethod
        def step(self) -> None: ...

    class Member(Base):
        def step(self) -> None: ...

    defined = {"Base": Base, "Member": Member, "_Private": Member, "Other": int}

    def is_member(thing: type) -> bool:
        return issubclass(thing, Base)

    assert unexported(defined, [], is_member) == ["Member"]
    assert unexported(defined, ["Member"], is_member) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import load",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=safe)",
        "from torch import load as load_file\nload_file(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ],
)
def test_unsafe_loading_is_found(text: str) -> None:
    assert len(loading_violations(Source(f"{PACKAGE}.interop", text))) == 1


@pytest.mark.parametrize(
    "text", ["import torch\ntorch.load(path, weights_only=True)", "import numpy\nnumpy.load(path)"]
)
def test_safe_loading_is_allowed(text: str) -> None:
    assert loading_violations(Source(f"{PACKAGE}.interop", text)) == []


def test_a_missing_docstring_is_found() -> None:
    class Written:
        """Written."""

        def inherited(self) -> None:
            """Inherited."""

    class Heir(Written):
        def inherited(self) -> None: ...

        def bare(self) -> None: ...

        @property
        def silent(self) -> int: ...

    @dataclass
    class Recipe:
        x: int

    assert undocumented("Written", Written) == []
    assert undocumented("Heir", Heir) == ["Heir", "Heir.bare", "Heir.silent"]
    assert undocumented("Recipe", Recipe) == ["Recipe"]
    assert undocumented("number", 3) == []
