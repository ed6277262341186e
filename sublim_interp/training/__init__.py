"""Training: loop, batches, optimizers, interventions; recording/ observes it. It knows tokens, no experiment."""
