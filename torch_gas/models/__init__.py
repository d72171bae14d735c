"""The models of the paper, a file each; their layers are written once, in ``forward``."""

from torch_gas.models.appnp import APPNP
from torch_gas.models.gat import GAT
from torch_gas.models.gcn import GCN
from torch_gas.models.gcn2 import GCN2
from torch_gas.models.gin import GIN
from torch_gas.models.pna import PNA
from torch_gas.models.pna_conv import PNAConv
from torch_gas.models.pna_jk import PNA_JK
from torch_gas.models.sage import SAGE
from torch_gas.session.base import ScalableGNN

__all__ = ["APPNP", "GAT", "GCN", "GCN2", "GIN", "PNA", "PNA_JK", "SAGE", "PNAConv", "ScalableGNN"]
