"""The engines: how the spike times of a layer, and their gradients, are computed.

pool      earliest-spike pooling
synapse   what a layer is: Dense, Conv; currents of spikes
scan      all time steps one after the other: the meaning, on any platform
event     one pass over the spikes that arrive, for CPUs: what its kernels are told
sweep     all layers of one image until it is decided, for CPUs
choice    which of them computes, asked where a program is lowered
library   compiled kernels: kernels, lanes, calls, in words of plan

`event` and `scan` have the same `forward` and `backward`. Nothing here is public.
"""
