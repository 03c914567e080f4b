"""Training.

Configuration values (rules, optimizers, …), the training step, the loop, checkpoints.
May import `networks`, `data` and what these import.
"""
