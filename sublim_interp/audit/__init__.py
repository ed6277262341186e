"""The auditor: what a data set or a model may pass on, and where both come from."""
