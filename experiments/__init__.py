"""The laboratory, in a checkout alone: runs by flagfile (`mnist`, `fashion`, `digits`),
the paper's report, ablations, teachers, ceilings, ensembles, releases.

May import all of `ds4nn_jax`, which imports nothing of it.
"""
