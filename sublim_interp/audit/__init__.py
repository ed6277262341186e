"""What came through, and where models and data come from: nothing here trains, all of it reads."""
