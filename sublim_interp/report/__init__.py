"""What came out, for a reader: sentences, terminal, page, figures. `run` makes an experiment, then its report."""
