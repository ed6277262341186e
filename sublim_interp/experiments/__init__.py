"""Experiments: what they are, which records they need, what they cost, how they are run and read back."""
