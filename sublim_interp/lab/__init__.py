"""The lab: a small closed world in which bases are pre-trained from scratch. Nothing here trains or loads a model."""
