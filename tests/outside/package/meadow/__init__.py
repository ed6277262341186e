"""A package that adds one of each to sublim_interp: a file a thing, named in pyproject.toml."""
