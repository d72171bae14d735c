"""Graphs as users hold them: adjacency formats, attributes of nodes and edges, normalisation, products."""
