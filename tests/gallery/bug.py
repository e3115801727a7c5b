"""What a bug in the gallery is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

BUGS: list[Bug] = []


@dataclass(frozen=True)
class Bug:
    """An object that breaks a law.

    Attributes:
        make: makes the object.
        law: the name of the law that one would expect to tell.
        hint: words of the message that put a newcomer on the track.
        right: makes an object that is written as it should be, and has to pass.
        examples: cases that are tried.
        slow: whether it takes more than a few seconds.
        fixed: arguments of the law that are not drawn.
    """

    make: Callable[[], Any]
    law: str
    hint: str
    right: Callable[[], Any]
    examples: int = 4
    slow: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Where it hangs: the family and the class."""
        return f"{self.make.__module__.rpartition('.')[2]}-{self.make.__name__}"


def breaks(
    law: str,
    hint: str,
    right: Callable[[], Any],
    *,
    examples: int = 4,
    slow: bool = False,
    **fixed: Any,
) -> Callable[[Any], Any]:
    """Hang the decorated class, or function without arguments, in the gallery."""

    def hang(make: Callable[[], Any]) -> Callable[[], Any]:
        BUGS.append(Bug(make, law, hint, right, examples, slow, fixed))
        return make

    return hang
