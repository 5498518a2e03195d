"""The only package that composes specs, strategies and cluster into runs."""
