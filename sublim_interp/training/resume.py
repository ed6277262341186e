"""A half-done training on disk and back: its weights, its optimizer, its next step."""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.core.files import is_sealed, seal

_SAID = "optimizer"
"""The entry of a file's metadata that holds, as JSON, what an optimizer keeps beside tensors."""


class Resume:
    """The state of a half-done training in one safetensors file: trained weights, all the optimizer keeps, next step.

    path: the file
    every: updates between two states
    seconds: after which a state is due whatever the updates; those of large models take long
    """

    def __init__(self, path: Path, every: int = 200, seconds: float = 600.0) -> None:
        self.path, self.every, self._seconds = path, every, seconds
        self._kept = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a state should be kept after `step` updates."""
        return step % self.every == 0 or time.monotonic() - self._kept > self._seconds

    def save(self, step: int, named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        """Keeps the state after `step` updates; `named` are the weights that train.

        Raises SublimError for an optimizer that keeps more than tensors of each weight, and what JSON can hold.
        """
        tensors = {f"weight/{name}": p.detach() for name, p in named.items()}
        plain: dict[str, dict[str, Any]] = {}
        for name, p in named.items():
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{key}/{name}"] = value
                else:
                    plain.setdefault(name, {})[key] = value
        tensors["step"] = torch.tensor(step)
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        try:
            said = json.dumps({"state": plain, "groups": groups})
        except TypeError as error:
            kind = type(optimizer).__name__
            raise SublimError(f"a half-done training by {kind} cannot be kept, nor gone on from: {error}") from error
        partial = self.path.with_suffix(".writing")
        save_file({k: v.contiguous() for k, v in tensors.items()}, str(partial), {_SAID: said})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        seal(self.path, partial)
        partial.replace(self.path)
        self._kept = time.monotonic()

    @property
    def step(self) -> int:
        """The step from which `load` goes on; 0 where nothing was kept."""
        if not is_sealed(self.path):
            return 0
        with safe_open(str(self.path), "pt") as file:
            return int(file.get_tensor("step"))

    def drop(self) -> None:
        """Forgets the state: the training starts anew."""
        self.path.unlink(missing_ok=True)

    def load(self, named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
        """Puts the state back into weights and optimizer, and gives its step; 0 where nothing was kept."""
        if not is_sealed(self.path):
            return 0
        tensors = load_file(str(self.path))
        with safe_open(str(self.path), "pt") as file:
            said = json.loads((file.metadata() or {}).get(_SAID, "{}"))  # files of older versions say nothing
        ordered = (p for group in optimizer.param_groups for p in group["params"])
        places = {p: place for place, p in enumerate(ordered)}
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(tensors[f"weight/{name}"])
        plain: dict[str, dict[str, Any]] = said.get("state", {})
        state = {places[named[name]]: dict(kept) for name, kept in plain.items()}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, entry, name = key.split("/", 2)
                state.setdefault(places[named[name]], {})[entry] = value
        if state:  # torch knows which of them lie beside the weights, and which on the CPU
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        for name, kept in plain.items():
            optimizer.state[named[name]].update(kept)  # torch makes other strings of strings
        for group, kept in zip(optimizer.param_groups, said.get("groups", ()), strict=False):
            group.update((k, tuple(v) if isinstance(group.get(k), tuple) else v) for k, v in kept.items())
        return int(tensors["step"])
