"""What a trait is, how to ask about it, how its answers are scored. No training: the teach stage instils it."""
