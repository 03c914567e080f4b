"""The console script `ds4nn`: a subcommand for each use."""

import argparse
import sys
from collections.abc import Sequence

import ds4nn_jax as ds
from ds4nn_jax.cli import export, predict, progress

_EXAMPLES = """\
ds4nn train mnist            the best recipe known; or --preset, --flagfile
ds4nn train DIR              your own images, in a folder for each class
ds4nn evaluate mnist         the library's network on the test images
ds4nn predict image.png      what is in it, and when that was clear
ds4nn export mnist           C sources for a microcontroller; arrays; NIR
ds4nn report                 tables and figures of runs, or of the library's networks

ds4nn COMMAND --help tells more.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """What a shell calls; `argv` without the name of the program.

    Raises:
      SystemExit: after --help, or with a message for what cannot be done.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args, rest = _parser().parse_known_args(argv)
    with progress.naming_missing(f"ds4nn {args.command}"):
        _run(args, rest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds4nn",
        description=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=ds.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (("train", "train a network"), ("evaluate", "test one")):
        commands.add_parser(name, add_help=False, help=does)
    predict.add_parser(commands)
    export.add_parser(commands)
    commands.add_parser("report", add_help=False, help="tables and figures")
    return parser


def _run(args: argparse.Namespace, rest: list[str]) -> None:
    if args.command == "report":
        from ds4nn_jax.cli import report

        report.main(rest)
    elif args.command in ("predict", "export"):
        if rest:
            raise SystemExit(f"ds4nn {args.command}: unknown flag {rest[0]}")
        {"predict": predict, "export": export}[args.command].main(args)
    else:
        from ds4nn_jax.cli import runner

        runner.main(["ds4nn", *rest], command=args.command)


def program() -> None:
    """The console script."""
    progress.program("ds4nn", main)


if __name__ == "__main__":
    program()
