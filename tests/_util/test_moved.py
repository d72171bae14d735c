"""Import paths of release 0.1 work and warn."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from torch_gas._util.moved import new_path

# Modules of release 0.1 that its documentation named, and what users imported from them.
OLD = {
    "torch_gas.adjacency": "find_adjacency check_adjacency",
    "torch_gas.builder": "SubData Builder",
    "torch_gas.inference": "layerwise_inference",
    "torch_gas.loader": "SubgraphLoader EvalSubgraphLoader",
    "torch_gas.monitor": "Monitor Limits Gain LayerBound LayerStatistics bound_table errors_table gains lipschitz",
    "torch_gas.monitor.jacobian": "jacobian_norm",
    "torch_gas.monitor.report": "figure summary_writer",
    "torch_gas.normalize": "gcn_norm add_self_loops in_degree",
    "torch_gas.refresh": "Policy Never BeforeTraining EveryEpochs EverySteps Exact Sweep Stalest Refresher",
    "torch_gas.regularization": "LocalPerturbation local_perturbation parameter_groups spectral_norm",
    "torch_gas.regularization.groups": "parameter_groups",
    "torch_gas.regularization.perturbation": "LocalPerturbation local_perturbation",
    "torch_gas.regularization.spectral": "spectral_norm",
    "torch_gas.scalable": "ScalableGNN",
    "torch_gas.scaled": "scale ScaledGNN",
    "torch_gas.storage": "FileTable FileTier HotSet StoredFeatures hot_nodes store_features",
    "torch_gas.storage.features": "StoredFeatures store_features",
    "torch_gas.storage.hot": "hot_nodes",
    "torch_gas.utils": "compute_micro_f1 gen_masks index_to_mask dropout",
}


@pytest.mark.filterwarnings(
    "ignore:torch_gas.* is torch_gas:DeprecationWarning"
)  # of the packages that a module was in
@pytest.mark.parametrize("path", OLD)
def test_old_paths_work_and_warn(path: str) -> None:
    sys.modules.pop(path, None)
    with pytest.warns(DeprecationWarning, match=f"{path} is torch_gas.*now") as caught:
        module = importlib.import_module(path)
    moved = importlib.import_module(new_path(path))
    for name in OLD[path].split():
        value = getattr(module, name)
        assert value is getattr(moved, name, value) and callable(value)
    assert str(caught[-1].message).startswith(f"{path} is {moved.__name__} now")
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018  # it is what raises


def test_the_package_itself_does_not_warn() -> None:
    code = "import torch_gas; torch_gas.refresh.Policy, torch_gas.regularization.LocalPerturbation, torch_gas.Monitor"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:torch_gas", "-c", code], capture_output=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:torch_gas.* is torch_gas:DeprecationWarning")
def test_other_paths_stay() -> None:
    for path in ("torch.nn", "torch_gas", "torch_gas.history", "torch_gas_more.loader"):
        assert new_path(path) == path
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch_gas.storage.no_such_module")
