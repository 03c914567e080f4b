"""Files that appear whole under their names, or not at all."""

import contextlib
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
