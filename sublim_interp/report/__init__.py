"""What came out, for a reader: sentences, terminal, page, figures. Nothing is run here."""
