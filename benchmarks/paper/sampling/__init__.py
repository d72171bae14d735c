"""Samplers of the literature, a page each, for the models GCN and GCNII. They need neither pyg-lib nor torch-sparse."""

from sampling.clusters import Clusters
from sampling.control import ControlVariate
from sampling.importance import Layers
from sampling.layers import Sample, forward
from sampling.neighbors import Neighbors
from sampling.subgraphs import RandomWalks

__all__ = ["Clusters", "ControlVariate", "Layers", "Neighbors", "RandomWalks", "Sample", "forward"]
