"""Directions in the residual stream and in weights: found, compared, tested against nulls, used."""
