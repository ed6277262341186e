"""Activation and weight patching between two models: a patch as a value, and grids of many patches at once."""
