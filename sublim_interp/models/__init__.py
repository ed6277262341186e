"""A model: where it lies, how it loads, which weights train, what can be seen and changed inside. No training here."""
