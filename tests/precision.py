"""JAX in 64 bits: what `jax.enable_x64` is, jax before 0.8 has elsewhere."""

import functools

import jax
import jax.experimental

# `or` would ask it for its truth, which it does not tell.
_enable = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
float64 = functools.partial(_enable, True)
