"""What makes the layers of a model exact on a batch of B nodes and S halo nodes.

A batch holds every edge into its B nodes and no edge into its halo. So a layer is exact on the first B rows if it
reads, for each destination, nothing but that node, its incoming edges and their sources.

``batch`` brings single layers to that by their arguments, and never by copies of their code (explicit wiring needs
nothing else). ``places`` finds where, in a forward pass of any model, rows appear whose halo part a batch does not
know, and ``rowwise`` has code that goes row by row run before that; ``probe`` tries out on a graph of a few nodes
(``small``) which of them matter, and that the result is exact: ``handlers`` holds what its runs do at the places,
``undisturbed`` leaves the model as it was, and ``selected`` looks at what the user's ``inputs`` takes from a batch.
``structure`` computes what depends on the whole graph but on no parameter; ``automatic`` fills the places while a model
runs; ``arguments`` gives ``forward`` what it takes. ``fused``, ``pairs`` and ``degrees`` compute layers by faster ways:
``standin`` stands in for their methods, and ``aggregations`` says of which reductions one consists. ``refusals`` names
what cannot be made exact.
"""

from torch_gas.wiring.batch import Batch, Rows, check_adjacency_of_batch, wire_whole
from torch_gas.wiring.refusals import Layers, find_layers, refuse, refuse_evaluation

__all__ = [
    "Batch",
    "Layers",
    "Rows",
    "check_adjacency_of_batch",
    "find_layers",
    "refuse",
    "refuse_evaluation",
    "wire_whole",
]
