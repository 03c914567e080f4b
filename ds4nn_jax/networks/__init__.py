"""Whole networks, for whoever has one.

Their notation, decisions, evaluation, weights, integers and exports.
May import `layers` and what that imports.
"""
