#!/usr/bin/env bash
# Makes .venv-peers beside .venv: what `python -m benchmarks.peers` measures us against.
set -euo pipefail
cd "$(dirname "$0")/.."
"${PYTHON:-python3.11}" -m venv .venv-peers
.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 torch==2.13.0 \
    snntorch==1.0.0 spikingjelly==2.0.0 spyx==1.0.0 jaxpike==0.1.4
.venv-peers/bin/python -m pip list --disable-pip-version-check |
    grep -iE '^(torch|snntorch|spikingjelly|spyx|jaxpike|jax|jaxlib|flax) '
