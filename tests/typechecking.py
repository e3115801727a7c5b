"""The type checker that the test suite applies to every function of scoresde.

jaxtyping checks each call twice: the parameters before it, parameters and result after it. We keep
the second check only. So a bad argument meets the library's own error message first, and whatever a
function accepts and returns must still fit its annotations, shapes included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

# an int is a float, as it is to mypy
_check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_after_call(function: Callable) -> Callable:
    """Type-check ``function``, if it stands for a call that has returned."""
    if function.__annotations__.get("return") is Any:  # how jaxtyping marks "parameters alone"
        return function
    try:
        checked = _check_types(function)
    except BeartypeDecorHintException:  # a hint it cannot read, such as Self
        return function

    def check(*args: Any, **kwargs: Any) -> Any:
        tracing = torch.compiler.is_compiling()  # the compiler cannot see through a type checker
        return function(*args, **kwargs) if tracing else checked(*args, **kwargs)

    return check
