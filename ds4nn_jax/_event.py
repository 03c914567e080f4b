"""The event engine for CPUs: not built yet, so `engine="auto"` is the scan."""


def available() -> bool:
    """Whether the engine can run here."""
    return False


def require() -> None:
    """Refuses a request for the engine where it cannot run.

    Raises:
      ImportError: always, until the engine is built.
    """
    raise ImportError('the event engine is not built yet: use engine="scan" or "auto"')
