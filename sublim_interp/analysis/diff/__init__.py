"""Model diffing: what has changed between two models of one base, by part, direction, token and text; a file each."""
