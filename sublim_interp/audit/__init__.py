"""What came through, and where models and data come from, with error rates."""
