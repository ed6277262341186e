"""Single hook points on the probe, at schedules of their own: what a recording's field `hooks` asks for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.models.architectures import text_config
from sublim_interp.models.hooks import axes_of, expanded, hook_names, kind_of
from sublim_interp.training.recording.probe import Probe
from sublim_interp.training.recording.settings import Recording, Schedule, due
from sublim_interp.training.recording.snapshot import Sight
from sublim_interp.training.recording.trace import Writer

GRADIENT = ".grad"
"""What a name or glob ends in that means the gradients there."""


class Group(NamedTuple):
    """The hook points that one entry of `hooks` asks for, and that no earlier one did."""

    names: list[str]
    """Names of hooks; those of gradients end in `.grad`."""
    when: Schedule
    """Their schedule."""


def groups(model: torch.nn.Module, recording: Recording) -> list[Group]:
    """The hook points that a recording asks for, on a model. Raises SublimError for names that it lacks."""
    found: list[Group] = []
    for asked, when in recording.hooks.items():
        ending = GRADIENT if asked.endswith(GRADIENT) else ""
        names = [name + ending for name in expanded(model, [asked.removesuffix(GRADIENT)])]
        before = {name for group in found for name in group.names}
        found.append(Group([name for name in names if name not in before], when))
    return [group for group in found if group.names]


def axes_of_recorded(name: str) -> list[str]:
    """Names of the axes of a recorded hook point, as the manifest has them."""
    return ["example", *axes_of(name.removesuffix(GRADIENT))[1:]]


def size_of_inside(model: torch.nn.Module, names: Sequence[str], lengths: Sequence[int]) -> int:
    """Bytes of hook points in one look at a probe of rows of these lengths, in float32."""
    config, longest = text_config(model), max(lengths, default=0)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    neurons = next((n for f in ("intermediate_size", "n_inner", "ffn_dim") if (n := getattr(config, f, None))), None)
    sizes = {
        "d_model": config.hidden_size, "d_head": width, "d_mlp": neurons or 4 * config.hidden_size, "one": 1,
        "query": longest, "key": longest,
    }  # fmt: skip
    total = 0
    for name in names:
        plain = name.removesuffix(GRADIENT)
        axes = axes_of(plain)
        each = len(lengths) if axes[1] == "head" else sum(lengths)
        for axis in axes[1:]:
            if axis == "head":
                each *= groups if kind_of(plain) in ("k", "v", "rot_k") else heads
            elif axis != "position":
                each *= sizes[axis]
        total += 4 * each
    return total


class _Kept:
    """Looks that are not written yet, in memory that is used again for those after them: new memory costs more."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        """Of each look, after how many updates."""
        self.tensors: dict[str, Tensor] = {}
        """By name [look, …], of which the first are filled; empty before the first look."""

    @property
    def bytes(self) -> int:
        """What the looks hold."""
        return len(self.steps) * sum(looks[0].nbytes for looks in self.tensors.values())

    def next(self) -> dict[str, Tensor]:
        """By name, the place of the next look."""
        return {name: looks[len(self.steps)] for name, looks in self.tensors.items()}

    def put(self, seen: dict[str, Tensor], most: int) -> None:
        """Puts a look in its place, and makes room for so many bytes before the first."""
        if not self.tensors:
            count = most // max(1, sum(tensor.nbytes for tensor in seen.values())) + 1
            self.tensors = {name: tensor.new_empty(count, *tensor.shape) for name, tensor in seen.items()}
        for name, place in self.next().items():
            place.copy_(seen[name])


class Inside:
    """Looks at hook points on the probe when their turn comes, and keeps what it saw until it is written.

    steps: number of updates, where it is known: entries that are log-spaced have the end too
    """

    BYTES = 16 << 20
    """So much is kept before a shard is written."""

    def __init__(self, model: torch.nn.Module, probe: Probe | None, recording: Recording, steps: int | None) -> None:
        self.groups = groups(model, recording)
        if self.groups and (probe is None or not probe.rows):
            raise SublimError("recording.hooks are seen on a probe: give the recorder one, as si.probe makes it")
        self._probe, self._steps = probe, steps
        self._sight = Sight(probe) if self.groups and probe else None
        self._kept = [_Kept() for _ in self.groups]

    @property
    def names(self) -> list[str]:
        """All that are recorded."""
        return [name for group in self.groups for name in group.names]

    def see(self, model: torch.nn.Module, step: int, writer: Writer, last: bool = False) -> None:
        """Looks at a model after so many updates, where something is due.

        last: whether the training ends here, though nobody had said so
        """
        now = [due(group.when, step, step if last else self._steps) for group in self.groups]
        if last:  # what was due anyway has been seen
            now = [turn and not due(group.when, step, None) for group, turn in zip(self.groups, now, strict=True)]
        turns = [(group, kept) for group, kept, turn in zip(self.groups, self._kept, now, strict=True) if turn]
        if not turns:
            return
        assert self._sight
        wanted = [name for group, _ in turns for name in group.names]
        fresh = any(not kept.tensors for _, kept in turns)
        into = None if fresh else {name: row for _, kept in turns for name, row in kept.next().items()}
        seen = self._sight.look(model, wanted, into)
        for group, kept in turns:
            if fresh:
                kept.put({name: seen[name] for name in group.names}, self.BYTES)
            kept.steps.append(step)
        if sum(kept.bytes for kept in self._kept) >= self.BYTES:
            self.write(writer, step)

    def reference(self, model: torch.nn.Module, of: str, writer: Writer) -> None:
        """The same once of another model, of the hook points that it has."""
        known = set(hook_names(model))
        names = [name for name in self.names if name.removesuffix(GRADIENT) in known]
        if names:
            assert self._probe
            seen = Sight(self._probe).look(model, names)
            writer.append(f"reference-{of}-hooks", [0], 0, {f"{of}/{n}": t[None] for n, t in seen.items()})

    def write(self, writer: Writer, upto: int) -> None:
        """Writes what is not written yet, a shard a group; `upto` updates have been made."""
        for number, kept in enumerate(self._kept):
            if kept.steps:
                tensors = {name: looks[: len(kept.steps)] for name, looks in kept.tensors.items()}
                writer.append(f"hooks{number}", kept.steps, upto, tensors)
                kept.steps = []
