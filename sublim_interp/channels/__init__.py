"""What the data looks like: how to ask a teacher for it, and which rule refuses an answer. One file a channel."""
