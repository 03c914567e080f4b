"""`ds4nn`: the experiments as one command.

ds4nn train mnist                   by the best recipe known; or --preset, --flagfile
ds4nn evaluate mnist                python -m experiments.mnist --evaluate=pretrained
ds4nn predict image.png             what is in it, and when that was clear
ds4nn export mnist --out_dir=DIR    C sources for a microcontroller; npz; NIR
ds4nn report                        python -m experiments.report
"""

import argparse
import sys
from collections.abc import Sequence

import ds4nn_jax as ds

from . import export, predict, progress


def main(argv: Sequence[str] | None = None) -> None:
    """What a shell calls; `argv` without the name of the program.

    Raises:
      SystemExit: after --help, or with a message for what cannot be done.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    asked, rest = _parser().parse_known_args(argv)
    with progress.naming_missing(f"ds4nn {asked.command}"):
        _run(asked, rest)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ds4nn",
        description=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=ds.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, does in (("train", "train a network"), ("evaluate", "test one")):
        command = commands.add_parser(name, add_help=False, help=does)
        command.add_argument(
            "dataset", nargs="?", help="digits, mnist, fashion_mnist, …"
        )
    predict.add_parser(commands)
    export.add_parser(commands)
    commands.add_parser("report", add_help=False, help="tables and figures")
    return parser


def _run(asked: argparse.Namespace, rest: list[str]) -> None:
    if asked.command == "report":
        from . import report

        report.main(rest, "ds4nn report")
    elif asked.command in ("predict", "export"):
        if rest:
            raise SystemExit(f"ds4nn {asked.command}: unknown flag {rest[0]}")
        {"predict": predict, "export": export}[asked.command].main(asked)
    else:
        from . import runner

        if asked.dataset is None and not {"-h", "--help"} & {*rest}:
            raise SystemExit(
                f"ds4nn {asked.command}: which data set? As in: "
                f"ds4nn {asked.command} mnist"
            )
        dataset = asked.dataset or "digits"
        command = f"ds4nn {asked.command} {asked.dataset or 'DATASET'}"
        if asked.command == "evaluate" and not any("--evaluate" in a for a in rest):
            rest.append("--evaluate=pretrained")
        runner.main([command, *rest], dataset, command)


def program() -> None:
    """The console script."""
    progress.program("ds4nn", main)


if __name__ == "__main__":
    program()
