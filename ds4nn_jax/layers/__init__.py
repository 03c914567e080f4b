"""Single-spike layers, for a program of one's own.

Functions and Flax modules, surrogates, losses, and how images become spike times.
May import `_engines` and the package's private modules.
"""
