"""Observing a training: what is kept, how often, and its trace on disk and back."""
