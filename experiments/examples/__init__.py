"""The library inside other people's JAX code."""
