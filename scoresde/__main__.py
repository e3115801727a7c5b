"""The command line: ``scoresde demo | train | sample | restore | likelihood | inspect | check``.

User errors are printed as one line on standard error, with exit code 2; ``--debug`` prints the
traceback.
"""

from __future__ import annotations

import os
import sys
import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from scoresde import __version__
from scoresde.commands import COMMANDS
from scoresde.samplers import SamplingError

_USER_ERRORS = (ValueError, TypeError, OSError, ModuleNotFoundError, ArithmeticError, SamplingError)

_INTERRUPTED = 130
"""Exit code after Ctrl-C (128 + SIGINT)."""

_CLOSED_PIPE = 141
"""Exit code after a reader such as ``head`` has closed the pipe (128 + SIGPIPE)."""


class _Help(RawDescriptionHelpFormatter):
    """Help with unwrapped examples and a wide column of option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)


def build_parser() -> ArgumentParser:
    """Return the parser of all commands."""
    parser = ArgumentParser(
        prog="scoresde",
        description="Score-based generative modeling through stochastic differential equations.",
        epilog="scoresde COMMAND --help describes a command and its options; start with scoresde "
        "demo.",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"scoresde {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        own = commands.add_parser(
            command.name,
            help=command.summary,
            description=textwrap.fill(command.description, 78),
            epilog=f"examples:\n{command.example}",
            formatter_class=_Help,
        )
        command.add_options(own)
        own.add_argument(
            "--debug",
            action="store_true",
            help="print the traceback of an error (default: one line)",
        )
        own.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; those of the process if None.

    Returns:
        The exit code: 0 on success, 1 if a property is violated (``check``), 2 for a user error,
        130 after Ctrl-C, 141 if the reader of the output has closed the pipe.
    """
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as exit_:  # --help, --version, or invalid arguments
        return exit_.code if isinstance(exit_.code, int) else 2
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return _CLOSED_PIPE
    except KeyboardInterrupt as stop:
        print(f"scoresde: {stop or 'stopped'}", file=sys.stderr)
        return _INTERRUPTED
    except _USER_ERRORS as error:
        if options.debug:
            raise
        print(f"scoresde: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
