"""Training: loop, batches, optimizers, interventions; recording/ observes it. Tokens and weights, no experiment."""
