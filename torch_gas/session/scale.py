"""scale(): histories for a model that knows nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import Data

from torch_gas._util.arguments import checked
from torch_gas.graph.key import order_key
from torch_gas.session.extension import Extension
from torch_gas.session.model import HistoryModel
from torch_gas.session.scaled import ScaledGNN
from torch_gas.session.session import refuse_inference_tensors

Places = Literal["row-wise", "outputs", "cheap"]


@checked
def scale(
    model: Module,
    data: Data | None = None,
    *,
    num_nodes: int | None = None,
    inputs: Callable[[Data], tuple[Any, ...] | dict[str, Any]] | None = None,
    regularization: Extension | None = None,
    compensation: Extension | None = None,
    places: Places = "row-wise",
    torch_dropout: bool = False,
    **options: Any,
) -> ScaledGNN:
    r"""Makes a model train with historical embeddings, without a change to it.

    The model is tried out on a graph of a few nodes, which tells where it needs histories (behind its message-passing layers
    but the last, between the hops inside of a layer), which degrees it counts that only the whole graph can tell, and that a
    batch's rows are then those of the whole graph. A model for which they are not is refused.

    Args:
        model: any module with message-passing layers. It is shared, not copied: training the result trains it.
        data: the graph in the order of the loader's, that is after :func:`torch_gas.permute`.
        num_nodes: number of nodes of the graph, N, instead of ``data``. The model is then tried out when it is first
            called, and its layers may not normalise by degrees.
        inputs: what ``forward`` takes from a batch, ``lambda batch: (batch.x, batch.edge_index)``, or by name in a dictionary. By
            default the attributes of its parameters' names.
        regularization: a penalty that training calls compute: ``loss = criterion(out, y) + model.regularization()``; see
            :class:`torch_gas.extensions.regularization.LocalPerturbation`.
        compensation: :class:`torch_gas.extensions.Compensation`, by which gradients of batches do not end at histories.
        places: where histories take rows from. By default, row-wise code behind a convolution that holds neither parameters nor
            dropout (an activation, the sum of a residual connection) runs on a batch's rows before they are pushed. With
            ``"outputs"``, histories hold what convolutions return, as in release 0.1, and such code runs on halo rows as well.
            With ``"cheap"``, code with parameters or dropout (norms, dense layers) runs before as well: halo rows have the masks
            of the batch they were pushed with, and nothing of the gradient of these parameters comes through them.
        torch_dropout: whether dropout draws torch's random numbers on a CPU. By default the model's dropout, that inside of PyG's
            layers included, is drawn by this package's generator, which is faster, and follows :func:`torch.manual_seed` too.
        **options: of the histories and their transfers (``device``, ``history_dtype``, ``tier``, ...), as in
            :class:`ScalableGNN`.

    Returns:
        A model that is called with a batch of a loader, with a whole graph, or with ``loader=``, as any
        :class:`ScalableGNN`; see :class:`ScaledGNN`.

    Raises:
        ValueError: if the model cannot be exact on batches; the error names the layer, the reason and what to do. Also if
            ``places`` is unknown, or files hold rows of other places.

    Example:
        >>> import torch
        >>> from torch_geometric.nn import GCN
        >>> from torch_gas import SubgraphLoader, metis, permute, scale
        >>> from torch_gas.datasets import synthetic
        >>> data = synthetic(1000)
        >>> perm, ptr = metis(data, num_parts=8, log=False)
        >>> data = permute(data, perm, log=False)
        >>> model = scale(GCN(data.num_features, 16, num_layers=3, out_channels=10), data)
        >>> for batch in SubgraphLoader(data, ptr, batch_size=4):
        ...     assert model(batch).shape == (batch.batch_size, 10)
    """
    if places not in get_args(Places):
        raise ValueError(f"scale(): places must be one of {', '.join(map(repr, get_args(Places)))}, but is {places!r}")
    for child in model.modules():
        if isinstance(child, HistoryModel):
            raise ValueError(
                f"scale(): {type(child).__name__} is a ScalableGNN, which has histories already; use it as it is"
            )
    if hasattr(model, "_orig_mod"):
        raise ValueError("scale() takes the plain model, and not the result of torch.compile")
    refuse_inference_tensors(f"scale(): {type(model).__name__}", model.parameters())
    if data is None:
        if num_nodes is None:
            raise ValueError("scale() needs the graph: pass data, in the order of the loader's, or num_nodes")
    elif isinstance(data.x, np.ndarray):
        raise TypeError("scale(): data.x must be a tensor: data.x = torch.from_numpy(data.x)")
    elif isinstance(data.x, Tensor) and data.x.layout != torch.strided:
        raise ValueError(
            "scale() takes dense features: data.x = data.x.to_dense(); sparse ones are for models that derive from ScalableGNN"
        )
    elif data.x is None and "num_nodes" not in data:
        raise ValueError("scale(): data has neither x nor num_nodes; set one of them")
    elif num_nodes not in (None, data.num_nodes):
        raise ValueError(f"scale(): data has {data.num_nodes} nodes, but num_nodes is {num_nodes}; drop one of them")
    num_nodes = num_nodes if data is None else data.num_nodes
    scaled = ScaledGNN(model, num_nodes, inputs, places=places, torch_dropout=torch_dropout, **options)
    if data is not None:
        scaled._order = order_key(data.get("perm"))
        scaled._try_out(data, scaled._arguments, data)
    for extension in filter(None, (regularization, compensation)):
        scaled.add_extension(extension)
    return scaled
