"""The engines: how the spike times of a layer, and their gradients, are computed.

pool               earliest-spike pooling
synapse            what a layer is: Dense, Conv; currents of spikes
scan               all time steps one after the other: the meaning, on any platform
event              one pass over the spikes that arrive, for CPUs: plans and calls
early_exit         all layers of an image until it is decided, for CPUs: likewise
kernels,           their compiled loops: plan, lanes and calls are what these are
early_exit_kernel  written in
cuda               the event engine for NVIDIA GPUs
choice             which engine computes, decided where a program is lowered
library            compiles, tries and keeps kernels

`event` and `scan` have the same `forward` and `backward`. Nothing here is public.
"""
