"""Training: the loop, batches, optimizers, interventions; recording/ observes it. It knows tokens and weights, no experiment."""
