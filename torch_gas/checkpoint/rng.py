"""The states of all random numbers that training may draw, in types that every reader knows."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree


def random_states() -> dict[str, Any]:
    """Those of torch on the CPU and, where it was used, on each CUDA device, of numpy, and of Python."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy = pytree.tree_map(_to_tensor, np.random.get_state(legacy=False))
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def check_random_states(states: Any, path: str) -> None:
    """Raises ValueError unless :func:`set_random_states` can set ``states`` of the file ``path``.

    Warns where fewer CUDA devices are here than were then.
    """
    try:
        here = _num_devices(states)
        torch.Generator().set_state(states["torch"])
        np.random.RandomState().set_state(pytree.tree_map(_to_array, states["numpy"]))
        random.Random().setstate(states["python"])
        for device, state in enumerate(states["cuda"][:here]):
            torch.Generator(f"cuda:{device}").set_state(state)
    except Exception as error:  # of any type: torch, numpy and Python each have their own
        raise ValueError(
            f"{path} holds states of random numbers that cannot be set; take another copy of it"
        ) from error
    if here < len(states["cuda"]):
        warnings.warn(
            f"checkpoint.load: random numbers of {len(states['cuda'])} CUDA devices were saved, but {here} are here; what is "
            "drawn there will differ from the run that was saved",
            UserWarning,
            stacklevel=3,
        )


def set_random_states(states: dict[str, Any]) -> None:
    """Sets what :func:`random_states` returned."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(pytree.tree_map(_to_array, states["numpy"]))
    random.setstate(states["python"])
    for device, state in enumerate(states["cuda"][: _num_devices(states)]):
        torch.cuda.set_rng_state(state, device)


def _num_devices(states: dict[str, Any]) -> int:
    return torch.cuda.device_count() if states["cuda"] else 0


def _to_tensor(value: Any) -> Any:
    # Words of numpy are unsigned; torch 2.4 cannot save such tensors.
    return torch.from_numpy(value.view(np.int32)) if isinstance(value, np.ndarray) else value


def _to_array(value: Any) -> Any:
    return value.numpy().view(np.uint32) if isinstance(value, torch.Tensor) else value
