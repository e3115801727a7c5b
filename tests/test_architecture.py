"""The house stands as it was drawn: imports go down only, and no object is asked its type.

The rules are functions from source text to violations, so that they are themselves tested on
small sources that break them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path

import pytest

PACKAGE = "scoresde"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE

FLOORS = (  # from the ground up; private modules such as _shapes are the ground itself
    {"sdes", "networks", "solvers", "traces", "operators", "dequantization"},
    {"score", "exact", "coordinates", "predictions", "moments", "variables"},
    {"losses", "samplers", "likelihood"},
    {"guidance", "training", "interop", "testing", "plots"},
    {"commands"},
    {"__init__", "__main__"},
)
NEIGHBOURS = {1, 3}  # floors (the ground is 0) whose rooms never import each other

SEAMS = {  # what users bring: a public door may refuse what is not one, but never asks which one
    "Coordinates",
    "GaussianMeasurement",
    "GaussianSDE",
    "LinearOperator",
    "Measurement",
    "Method",
    "Observation",
    "PosteriorScore",
    "Prediction",
    "ProbeDistribution",
    "PosteriorSampler",
    "SDE",
    "Sampler",
    "Score",
    "Solver",
    "Tableau",
    "TimeSampler",
    "Trace",
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
    def room(self) -> str:
        """The file or folder directly under the package that this module belongs to."""
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
                kept = len(parents) - node.level + source.is_package
                origin = ".".join([*parents[:kept], *([origin] if origin else [])])
            for alias in node.names:
                yield alias.asname or alias.name, f"{origin}.{alias.name}"


def imported_rooms(source: Source, rooms: set[str]) -> set[str]:
    """The rooms of the package that a module imports from; its front door is ``__init__``."""
    found = set()
    for _, origin in bindings(source):
        package, _, inside = origin.partition(".")
        if package == PACKAGE:
            room = inside.split(".")[0]
            found.add(room if room in rooms else "__init__")
    return found


# --- rule 1: imports go down only


def floor_of(room: str) -> int:
    for height, floor in enumerate(FLOORS, start=1):
        if room in floor:
            return height
    if room.startswith("_"):
        return 0
    raise AssertionError(f"{room} has no floor: give it one in FLOORS")


def import_violations(modules: list[Source]) -> list[str]:
    rooms = {module.room for module in modules}
    imports: dict[str, set[str]] = {room: set() for room in rooms}
    found = []
    for module in modules:
        here = floor_of(module.room)
        for room in sorted(imported_rooms(module, rooms) - {module.room}):
            imports[module.room].add(room)
            there = floor_of(room)
            if there > here:
                found.append(f"{module.name} imports {room}, which is above it")
            elif there == here and here in NEIGHBOURS:
                found.append(f"{module.name} imports {room}, its neighbour")
    return found + [f"{room} imports itself through others" for room in cycles(imports)]


def cycles(imports: dict[str, set[str]]) -> list[str]:
    """The rooms that are reached from themselves."""

    def reached(room: str) -> set[str]:
        seen: set[str] = set()
        waiting = [room]
        while waiting:
            new = imports[waiting.pop()] - seen
            seen |= new
            waiting.extend(new)
        return seen

    return sorted(room for room in imports if room in reached(room))


# --- rule 2: no object of ours is asked its type


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


def types_asked(tree: ast.AST) -> Iterator[ast.expr]:
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


def refusals(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the class expressions in ``if not isinstance(…): raise TypeError(…)``."""
    for node in ast.walk(tree):
        match node:
            case ast.If(
                test=ast.UnaryOp(op=ast.Not(), operand=ast.Call() as question),
                body=[ast.Raise(exc=ast.Call(func=ast.Name(id="TypeError")))],
                orelse=[],
            ):
                yield from types_asked(question)


def own_classes(modules: list[Source]) -> set[str]:
    return {
        node.name
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    }


def type_violations(modules: list[Source]) -> list[str]:
    ours = own_classes(modules)
    found = []
    for module in modules:
        if module.room == "_checks":
            continue
        tree, bound, local = module.tree, dict(bindings(module)), own_classes([module])
        refused = set(refusals(tree))
        for expression in types_asked(tree):
            name = dotted(expression)
            origin = origin_of(name, bound)
            leaf = origin.rpartition(".")[2]
            is_ours = leaf in ours and (name in local or origin.startswith(f"{PACKAGE}."))
            if is_ours and not (leaf in SEAMS and expression in refused):
                found.append(f"{module.name}:{expression.lineno} asks for the type {leaf}")
    return found


# --- rule 3: a file is data, never code


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


# --- rule 4: what is public is documented


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


# --- the house itself


def test_imports_go_down_only() -> None:
    assert import_violations(sources()) == []


def test_own_types_are_never_asked() -> None:
    assert type_violations(sources()) == []


def test_files_are_data_never_code() -> None:
    assert [line for module in sources() for line in loading_violations(module)] == []


@pytest.mark.parametrize("name", [module.name for module in sources() if module.room != "__main__"])
def test_public_names_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    public = getattr(module, "__all__", [])
    missing = [each for each in public if not hasattr(module, each)]
    assert missing == []
    assert [each for own in public for each in undocumented(own, getattr(module, own))] == []


# --- the rules can fail


def house(**texts: str) -> list[Source]:
    """A package from the texts of its modules; ``a__b`` is the module b in the folder a."""
    return [
        Source(
            f"{PACKAGE}.{name.replace('__', '.')}" if name != "root" else PACKAGE,
            text,
            name == "root",
        )
        for name, text in texts.items()
    ]


@pytest.mark.parametrize(
    ("texts", "violation"),
    [
        (
            {"sdes": "import scoresde.scores", "score": ""},
            "scoresde.sdes imports score, which is above",
        ),
        ({"sdes": "from scoresde import score as s", "score": ""}, "score, which is above"),
        ({"sdes": "from .score import Score", "score": ""}, "score, which is above"),
        ({"sdes__vp": "from ..score import Score", "score": ""}, "sdes.vp imports score"),
        (
            {"sdes": "def f():\n    from scoresde.scores import Score", "score": ""},
            "which is above",
        ),
        (
            {"sdes": "if TYPE_CHECKING:\n    from scoresde.scores import Score", "score": ""},
            "which is above",
        ),
        (
            {"sdes__vp": "from scoresde.networks import MLP", "networks": ""},
            "networks, its neighbour",
        ),
        ({"losses": "from scoresde import samplers", "samplers": ""}, "samplers, its neighbour"),
        ({"_checks": "from scoresde.sdes import SDE", "sdes": ""}, "_checks imports sdes"),
        ({"sdes": "from scoresde import VPSDE", "root": ""}, "sdes imports __init__"),
        ({"sdes": "import scoresde", "root": ""}, "sdes imports __init__"),
        (
            {
                "score": "from scoresde.scores.gaussian_mixture import A",
                "exact": "import scoresde.scores",
            },
            "exact imports itself through others",
        ),
    ],
)
def test_a_forbidden_import_is_found(texts: dict[str, str], violation: str) -> None:
    assert violation in "\n".join(import_violations(house(**texts)))


def test_an_allowed_import_is_not() -> None:
    modules = house(
        _shapes="import torch",
        _checks="from scoresde._core.shapes import expand",
        sdes__base="from scoresde._core.shapes import expand",
        sdes__vp="from .base import SDE\nfrom scoresde.sdes.base import SDE",
        score="from scoresde import sdes, _shapes",
        exact="from scoresde.scores import Score",
        losses="from scoresde.scores import Score\nimport scoresde_other.samplers",
        root="from scoresde.training.losses import dsm_loss",
    )
    assert import_violations(modules) == []


def test_a_room_without_a_floor_is_found() -> None:
    with pytest.raises(AssertionError, match="cellar has no floor"):
        import_violations(house(cellar=""))


@pytest.mark.parametrize(
    "question",
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
    ],
)
def test_a_type_question_is_found(question: str) -> None:
    text = (
        "import scoresde.sdes\nfrom scoresde import sdes\nfrom scoresde.sdes import VPSDE\n"
        f"from scoresde.sdes import VPSDE as Renamed\nclass Local: ...\nx = {question}"
    )
    modules = house(sdes="class VPSDE: ...", score=text)
    assert len(type_violations(modules)) == 1


def test_only_a_seam_may_be_refused_at_the_door() -> None:
    def asked(condition: str, consequence: str) -> int:
        text = f"from scoresde.sdes import SDE, VPSDE\nif {condition}:\n    {consequence}"
        return len(type_violations(house(sdes="class SDE: ...\nclass VPSDE: ...", score=text)))

    assert asked("not isinstance(sde, SDE)", "raise TypeError('sde')") == 0
    assert asked("not isinstance(sde, VPSDE)", "raise TypeError('sde')") == 1
    assert asked("isinstance(sde, SDE)", "raise TypeError('sde')") == 1
    assert asked("not isinstance(sde, SDE)", "return x") == 1
    assert asked("not isinstance(sde, SDE)", "raise TypeError('sde')\nelse:\n    x = 1") == 1


def test_a_type_pattern_is_found() -> None:
    text = "from scoresde.sdes import VPSDE\nmatch sde:\n    case VPSDE(): pass"
    assert len(type_violations(house(sdes="class VPSDE: ...", score=text))) == 1


def test_a_question_about_others_types_is_allowed() -> None:
    text = (
        "from torch.distributions import Uniform\nimport torch\n"
        "isinstance(x, Uniform), isinstance(x, torch.Tensor), isinstance(x, (int, float))"
    )
    assert type_violations(house(losses="class Uniform: ...", score=text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import load",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=trusted)",
        "from torch import load as read\nread(path)",
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
