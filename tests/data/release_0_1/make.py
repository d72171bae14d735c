"""Writes the files beside this one; run it with release 0.1.0 of torch-gas: ``python make.py FOLDER``."""

import sys
from pathlib import Path

import torch
from torch_gas.refresh import EveryEpochs
from torch_geometric.data import Data
from torch_geometric.nn import GCN

import torch_gas
from torch_gas import FileTier, History, Monitor, SubgraphLoader, checkpoint, metis, permute, save_partition, scale
from torch_gas.models import SAGE

assert torch_gas.__version__ == "0.1.0"
N, C = 24, 4
folder = Path(sys.argv[1])


def make_graph() -> Data:
    """Two rings with chords; the same numbers everywhere."""
    node = torch.arange(N)
    edge_index = torch.cat([torch.stack([node, (node + step) % N]) for step in (1, 5)], dim=1)
    x = torch.stack([(node * k % 7).float() / 7 for k in (1, 2, 3)], dim=1)
    return Data(x=x, edge_index=torch.cat([edge_index, edge_index.flip(0)], dim=1))


torch.manual_seed(0)
partition = metis(make_graph(), 4, log=False)
save_partition(folder / "partition.npz", partition)
data = permute(make_graph(), partition.perm, log=False)
loader = SubgraphLoader(data, partition.ptr, 2)

model = SAGE(N, 3, C, 2, num_layers=3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for batch in loader:
    optimizer.zero_grad()
    model(batch).square().mean().backward()
    optimizer.step()
checkpoint.save(folder / "run.safetensors", model=model, optimizer=optimizer, epoch=1)
model.save_histories(folder / "histories.safetensors")
expected = {"perm": partition.perm, "ptr": partition.ptr}
for number, history in enumerate(model.histories):
    expected[f"history_{number}"], expected[f"age_{number}"] = history.pull(), history.age
expected["output"] = model.eval()(loader=loader)  # whose sweeps change the histories

model.train()
loader = SubgraphLoader(data, partition.ptr, 2, shuffle=True, seed=3)
monitor, refresher = Monitor(model, every=1), EveryEpochs(2).bind(model, loader)
refresher.before_training()
for batch in loader:
    model(batch).square().mean().backward()
    refresher.after_step()
refresher.after_epoch()
checkpoint.save(folder / "objects.safetensors", model=model, loader=loader, monitor=monitor, refresher=refresher)
expected["pulled"] = torch.tensor([layer.pulled for layer in monitor.statistics()])
expected["next_epoch"] = torch.cat([batch.n_id[: batch.batch_size] for batch in loader])
monitor.detach()

for dtype in (torch.float32, torch.int8):
    name = str(dtype).removeprefix("torch.")
    history = History(N, C, dtype=dtype, tier=FileTier(folder / f"{name}.table"))
    history.push(torch.randn(N, C))
    history.tick()
    history.commit()
    expected[name] = history.pull()
    expected[f"{name}_age"] = history.age

model = scale(GCN(3, C, 2, out_channels=2), data)
for batch in loader:
    model(batch)
expected["scaled"] = model.histories[0].pull()
model.save_histories(folder / "scaled.safetensors")
torch.save(expected, folder / "expected.pt")
