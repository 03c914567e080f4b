"""Entry points: `python -m experiments.digits`, `.mnist`, `.fashion`."""
