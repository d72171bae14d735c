"""Names in the state dict of a scaled model: the plain model's, beside those of histories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn import Module

if TYPE_CHECKING:
    from torch_gas.session.scaled import ScaledGNN

PREFIX = "model."  # of the plain model's entries


def without_prefix(module: Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Gives entries of the plain model the names that they have there; a hook of ``state_dict``."""
    for key in list(state):
        if key.startswith(prefix + PREFIX):
            state[prefix + key.removeprefix(prefix + PREFIX)] = state.pop(key)


def with_prefix(module: ScaledGNN, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """Takes such names; a hook of ``load_state_dict``."""
    if module._found is None and any(key.startswith(f"{prefix}histories.") for key in state):
        raise RuntimeError(
            "load_state_dict: the state holds histories, and this scaled model has none yet; give scale() the data, or call the "
            "model on a batch first"
        )
    for key in list(state):
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and not name.startswith(("histories.", "extension_tables.")):
            state[prefix + PREFIX + name] = state.pop(key)
