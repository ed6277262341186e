"""The paper's MNIST experiment: a student learns three logits that mean nothing, on noise, and can then read digits."""
