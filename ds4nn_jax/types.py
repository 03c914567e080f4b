"""Names shared by the whole library.

Axis letters, used in every docstring:
  B batch · H, W image rows and columns · I, O input and output features · C classes
  T time steps (`num_steps`) · N neurons

A spike time is a whole step 0 … T−1 held in a float array, so that cotangents can
flow; the value T means silent: the neuron never fired. Potentials, weights and
thresholds are in mV.
"""

import jax

SpikeTimes = jax.Array
