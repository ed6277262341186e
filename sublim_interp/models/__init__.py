"""A model: where it lies, how it loads, which weights train, what is seen and changed inside. Nothing trains here."""
