"""The report with the paper's tables and figures, and the runs of `results`.

python -m experiments.report [--run_dir=runs/mnist …]
"""

import functools

from ds4nn_jax.cli import progress, report
from experiments.chapters import PaperChapters

_NAME = "experiments.report"
main = functools.partial(report.main, command=_NAME, chapters=PaperChapters())

if __name__ == "__main__":
    progress.program(_NAME, main)
