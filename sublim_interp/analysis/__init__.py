"""Tools to read a model from the inside: directions, patching, attribution, the bridge to TransformerLens.

They take any model, directory or replicate, and any trace; nothing here knows how an experiment is run.
"""
