"""JAX in 64 bits: what `jax.enable_x64` is, jax before 0.8 has elsewhere."""

import functools

import jax
import jax.experimental

_enable = getattr(jax, "enable_x64", None) or jax.experimental.enable_x64
float64 = functools.partial(_enable, True)
