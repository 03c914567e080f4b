"""Training.

What a run is made of (rules, optimizers, schedules, …), its step, loop and checkpoints.
May import `networks`, `data` and what these import.
"""
