"""Files that appear complete under their names, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A path to write to that takes the name `path` at the end; until then, and if
    anything fails, an older file stays."""
    unfinished = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """The file appears complete under its name, or an older one stays.

    Raises:
      OSError: the directory is missing or not writable, or the disk is full.
    """
    # With the permissions that umask leaves.
    with atomic_file(path) as unfinished, unfinished.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
