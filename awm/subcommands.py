"""A command with subcommands: what ``awm-lab`` and ``awm-bench`` share. Help answers before anything is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from awm.registry import Registry


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One line of the list: where it lives and the question it answers."""

    path: str
    question: str


class Subcommands:
    """``PROGRAM NAME [options]``.

    Args:
        program: the command.
        kind: what a subcommand is ("benchmark").
        table: name -> subcommand, a function of the other arguments and of the words so far.
        about: lines of the help between usage and list, or "".
        more: the help's last words, or "".
        install: what to type if a package is missing.
    """

    def __init__(
        self, program: str, kind: str, table: Mapping[str, Subcommand], *, about: str = "", more: str = "", install: str
    ) -> None:
        self.registry = Registry(kind, {name: each.path for name, each in table.items()})
        self._program, self._kind, self._table = program, kind, table
        self._about, self._more, self._install = about, more, install

    def usage(self) -> str:
        """What ``--help`` prints: the subcommands, one line each."""
        width = max(map(len, self._table)) + 2
        rows = "\n".join(f"  {name:<{width}}{each.question}" for name, each in self._table.items())
        about = f"{self._about}\n\n" if self._about else ""
        name = self._kind.upper()
        return (
            f"usage: {self._program} {name} [options]\n\n{about}{self._kind}s:\n{rows}\n\n"
            f"{self._program} {name} --help lists the options of one{self._more}."
        )

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run what ``argv`` (without the program's name) asks for.

        Returns:
            The exit status: the subcommand's own, 0 for help, 1 for a mistake of the user, 130 after Ctrl-C.
        """
        arguments = list(sys.argv[1:] if argv is None else argv)
        if not arguments or arguments[0] in ("-h", "--help"):
            print(self.usage())
            return 0
        name, rest = arguments[0], arguments[1:]
        try:
            return int(self.registry.load(name)(rest, f"{self._program} {name}"))
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "awm":
                raise
            missing = f"{name} needs the package {error.name!r}, which is not installed; {self._install}"
            print(f"error: {missing}", file=sys.stderr)
        except (ValueError, OSError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            return 130
        return 1
