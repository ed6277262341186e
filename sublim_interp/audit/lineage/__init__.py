"""Where a model or a data set comes from: read off keys and digests of the store, off cards where nothing better is."""
