"""Contract 1, measured: which layers of PyG are exact on batches, in either wiring and each adjacency format.

``graph`` makes the graph, ``layers`` is the table of cases, ``measure`` measures one of them, and ``page`` writes the
results down. ``python -m conformance`` does it for all; docs/conformance.md is what it printed.
"""

from conformance.graph import FORMATS, formats, graph
from conformance.layers import CASES, EXACT, REFUSED, SCALED, WITHOUT, Case, class_of
from conformance.measure import TOLERANCE, WIRINGS, Result, measure

__all__ = [
    "CASES",
    "EXACT",
    "FORMATS",
    "REFUSED",
    "SCALED",
    "TOLERANCE",
    "WIRINGS",
    "WITHOUT",
    "Case",
    "Result",
    "class_of",
    "formats",
    "graph",
    "measure",
]
