"""Files that appear whole under their names, or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that takes the name `path` at the end; until then, and if
    anything fails, an older one stays."""
    unfinished = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """The file appears whole under its name, or an older one stays.

    Raises:
      OSError: the directory is missing or not writable, or the disk is full.
    """
    # With the permissions that umask leaves.
    with whole(path) as unfinished, unfinished.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
