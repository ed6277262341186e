"""What all else stands on: errors, settings, keys, store, workers, device, drawing. No model, no experiment."""
