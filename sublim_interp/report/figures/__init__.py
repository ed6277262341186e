"""Figures: one file a figure, what a figure is in protocol.py, and the table of them all in by_name.py."""
