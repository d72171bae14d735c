"""The trial of a model on a small graph: which places need what, and whether batches are exact."""
