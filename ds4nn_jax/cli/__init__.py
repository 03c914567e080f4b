"""The installed command `ds4nn`: flags, progress, and a module for each subcommand.

May import the rest of the package; nothing in it imports this.
"""
