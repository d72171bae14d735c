"""Small helpers that know nothing of graphs: checked arguments, a thread, versions of tensors."""
