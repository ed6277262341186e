"""One file a figure, and one registry of them all."""
