"""What the data looks like: how a teacher is asked for it, and which rule refuses an answer. One file a channel."""
