"""Strategies: one idea from the literature a file. Importing this package loads no torch."""
