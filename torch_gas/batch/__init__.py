"""Batches: unions of parts with their halo, and the loaders that make them ahead and bring them to the device."""
