"""What everything else stands on: errors, settings, keys, the store, workers, device, drawing. It knows no model and no experiment."""
