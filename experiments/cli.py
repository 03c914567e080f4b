"""`ds4nn`: the experiments as one command.

ds4nn train mnist                   by the best recipe known; or --preset, --flagfile
ds4nn evaluate mnist                python -m experiments.mnist --evaluate=pretrained
ds4nn predict image.png             what is in it, and when that was clear
ds4nn report                        python -m experiments.report
"""

import argparse
import sys
from collections.abc import Sequence

from . import predict, progress, report, runner


def main(argv: Sequence[str] | None = None) -> None:
    """What a shell calls; `argv` without the name of the program.

    Raises:
      SystemExit: after --help, or with a message for what cannot be done.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="ds4nn",
        description=__doc__.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", add_help=False)
    train.add_argument("dataset", help="digits, mnist, fashion_mnist, …")
    evaluate = commands.add_parser("evaluate", add_help=False)
    evaluate.add_argument("dataset", help="digits, mnist, fashion_mnist, …")
    predict.add_parser(commands)
    commands.add_parser("report", add_help=False)
    asked, rest = parser.parse_known_args(argv)
    if asked.command == "report":
        report.main(rest)
    elif asked.command == "predict":
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        predict.main(asked)
    else:
        if asked.command == "evaluate" and not any("--evaluate" in a for a in rest):
            rest.append("--evaluate=pretrained")
        runner.main([f"ds4nn {asked.command}", *rest], asked.dataset)


def program() -> None:
    """The console script."""
    progress.program("ds4nn", main)


if __name__ == "__main__":
    program()
