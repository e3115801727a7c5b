"""Words that were retired from code and text stay retired: the field's terms and plain English.

Each retired word stands with what to write instead. ``ALLOWED`` lists the few legitimate uses.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".toml", ".txt", ".cff"}
FOLDERS = ("scoresde", "tests", "benchmarks", "tutorials")
HERE = Path(__file__).resolve()

RETIRED = {  # a pattern for whole words, in any case -> what to write
    r"tells?|told|telling|untold": "given, stored, reported, states, returns",
    r"laws?": "distribution; property",
    r"owes?|owed|owing": "property, requirement",
    r"doors?|front doors?": "public function, entry point",
    r"replay\w*": "gradient checkpointing, recompute",
    r"(?<!data )frames?|framed": "local coordinates; state of a step",
    r"pulls?(?![- ]request)|pulled|pulling": "to_local, slope, gradient, by what it is",
    r"pushe[sd]|pushing": "from_local, append, by what it is",
    r"charts?": "fixed grid, table",
    r"ladders?|rungs?": "noise levels, sigma schedule",
    r"whoever|nobody|somebody|everybody|everyone": "the user; by meaning",
    r"cures?": "hint",
    r"mates|batch-?mates?|company": "the other samples of the batch; batch independence",
    r"knots?": "timesteps",
    r"houses?|rooms?|(?<!\.)floors?|storey|seams?|neighbou?rhood": "package, layer",
    r"swelling|doubts?|doubted|distrust|trusted": "log-volume change, error estimate",
    r"learnt|spelt|burnt": "learned",
    r"stands?[ _]in|stand-ins?|standing[ _]in": "replaces, approximates",
    r"lenience|lenient": "tolerance factor",
    r"riddles?|buries|bury": "plain English",
    r"hangs? on": "depends on",
    r"counterfeits?|detours?|swellings?": "by meaning",
    r"colou?r(?<=colour)\w*|grey\w*|centre[sd]?|recentred?|neighbour\w*|behaviour\w*|favour\w*"
    r"|modelling|labelled|travell\w*|programme\w*": "American spelling",
    r"(?:standard|normal|general|discret|parametr|optim|regular|diagonal|linear|initial|minim"
    r"|maxim|final|random|equal|organ|recogn|summar|serial|factor|symmetr|tensor|synchron|vector"
    r"|special|util|local|tabul|visual|real|character|penal|stabil|categor|quant|dequant|local)"
    r"is(?:e|es|ed|er|ers|ing|ation|ations)": "American spelling: -ize",
}
"""What the text of the library no longer says."""

ALLOWED = (  # (path pattern, line pattern): a legitimate use
    (r"CITATION\.cff", r".*"),  # titles as their authors wrote them
    (r"LICENSE", r".*"),
    (r"tests/test_", r"grid_beta_ladder"),  # a key of recorded arrays
    (r"", r"Hutchinson\(.*\blaw="),  # the keyword is part of the public contract
    (r"traces/hutchinson\.py|test_traces\.py", r"\blaw: |self\.law\b|\"law\"|``law``"),
)


def violations(text: str, path: str = "") -> list[str]:
    """Return ``path:line: word -> what to write`` for each retired word in a text."""
    found = []
    for number, written in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", written)  # the words of CamelCase
        if any(re.search(p, path) and re.search(q, line) for p, q in ALLOWED):
            continue
        for pattern, instead in RETIRED.items():
            for match in re.finditer(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", line, re.I):
                found.append(f"{path}:{number}: {match.group()} -> {instead}")
    return found


def texts() -> list[Path]:
    """Every text of the library, tests and pages included."""
    inside = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))]
    return [
        path
        for path in [*sorted(ROOT.glob("*")), *inside]
        if path.is_file() and path.suffix in SUFFIXES and path != HERE
    ]


def test_no_retired_word_is_used() -> None:
    found = [
        line
        for path in texts()
        for line in violations(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join([f"{len(found)} retired words", *found[:100]])


@pytest.mark.parametrize(
    "text",
    ["the law of x", "time_law = 3", "class TimeLaw:", "the divergence is told", "Standardised"],
)
def test_a_retired_word_is_found(text: str) -> None:
    assert violations(text)


@pytest.mark.parametrize("text", ["lawn", "dequantized", "standard", "foretold", "math.floor(t)"])
def test_other_words_are_not(text: str) -> None:
    assert violations(text) == []
