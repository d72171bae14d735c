"""Partitions of a graph and the node order that makes parts contiguous."""

from torch_gas.partition.parts import edge_cut, load_partition, metis, save_partition
from torch_gas.partition.record import Partition
from torch_gas.partition.reorder import permute, unpermute

__all__ = ["Partition", "edge_cut", "load_partition", "metis", "permute", "save_partition", "unpermute"]
