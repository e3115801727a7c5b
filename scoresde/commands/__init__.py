"""The commands of the command line, one file each.

A command is a :class:`~scoresde.commands.base.Command`. A new one is one file, and one line here.
"""

from scoresde.commands import check, demo, inspect, likelihood, restore, sample, train
from scoresde.commands.base import Command

COMMANDS: tuple[Command, ...] = (
    demo.COMMAND,
    train.COMMAND,
    sample.COMMAND,
    restore.COMMAND,
    likelihood.COMMAND,
    inspect.COMMAND,
    check.COMMAND,
)
"""In the order in which ``--help`` lists them."""

__all__ = ["COMMANDS", "Command"]
