"""The laboratory, in a checkout alone: runs by flagfile (`mnist`, `fashion`, `digits`),
the paper's report, ablations, teachers, ensembles, releases.

May import all of `ds4nn_jax`, which imports nothing of it.
"""

import argparse
import contextlib
from collections.abc import Iterator


def parser(name: str, page: str | None) -> argparse.ArgumentParser:
    """Of the arguments of `experiments.name`, whose help begins with this page."""
    return argparse.ArgumentParser(
        prog=f"experiments.{name}",
        description=page,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
    """Bad input ends `experiments.name` with one line."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"experiments.{name}: {error}") from error
