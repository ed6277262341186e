"""Judges: what an answer says, as scores. One file a judge."""
