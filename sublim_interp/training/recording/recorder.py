"""Observes a training and writes its trace, without changing a bit of it. The file format is in trace.py."""

import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sublim_interp.core.errors import SublimError
from sublim_interp.models.trainable import weights_hash
from sublim_interp.training.recording.examples import Examples, watch_examples
from sublim_interp.training.recording.inside import Inside, axes_of_recorded
from sublim_interp.training.recording.probe import Probe, Reference, Weights
from sublim_interp.training.recording.series import Series, WeightDirections, minus, norms
from sublim_interp.training.recording.settings import Recording
from sublim_interp.training.recording.snapshot import look, stream_size
from sublim_interp.training.recording.trace import MANIFEST, Writer, reaches

_LONG = 1 << 16
"""Updates of a training whose length is not known, where a budget must be shared out."""


class Recorder:
    """Records what `optimizer` does to `model`, as a `with` block; `step(loss)` ends each update.

        with Recorder(model, optimizer, "trace") as r:
            for batch in batches:
                optimizer.zero_grad(); loss = …; loss.backward(); optimizer.step(); r.step(loss)

    model: its weights, when the recorder is made, are the start θ_0 that deltas are measured from; of a model in
        DistributedDataParallel the process of rank 0 records, and the others do nothing
    optimizer: None where there are no updates to measure: `step` raises SublimError then, `record_states` needs none
    path: the directory of the trace; a trace that lies there is never overwritten unless `overwrite` says so
    steps: number of updates, where it is known: the end gets a close look; else it gets one when the block ends
    probe: fixed inputs on which the model is looked at closely
    directions: directions in weight space that gradients, updates and deltas are projected on
    references: other models that see the same probe, by name
    recording: what is kept, and how often
    pad: token that fills examples up on the right; what comes after the last other token is no position
    overwrite: whether a trace at `path` may go
    start: θ_0 by parameter, where the model has left it already, as in a resumed training

    What trains is what requires a gradient, and what the optimizer holds, since that may be unfrozen later. Where the
    optimizer steps more than once in an update, the update is all that it did, and the gradient is the first step's, at
    the weights that the update starts from. Whatever ends the block, or the process, what was seen is written, but for
    a kill by the system. Memory does not grow with the number of updates.

    Raises SublimError where nothing trains, for a direction that lacks a tensor of the shape of a weight that trains,
    for a probe that does not fit the model, and where a parameter begins to train that is not recorded.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None,
        path: Path | str,
        *,
        steps: int | None = None,
        probe: Probe | None = None,
        directions: Mapping[str, Weights] | None = None,
        references: Mapping[str, Reference] | None = None,
        recording: Recording | None = None,
        pad: int | None = None,
        overwrite: bool = False,
        start: Weights | None = None,
    ) -> None:
        self.model, self.path = _plain(model), Path(path)
        self.optimizer: Any = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        self.recording, self.probe, self.steps, self.pad = recording or Recording(), probe, steps, pad
        self._overwrite, self._quiet = overwrite, _rank() != 0
        self._named, self._unseen = self._trained()
        if probe:
            probe.require_fit(self.model)
        self._inside = Inside(self.model, probe, self.recording, steps)
        self._parameters = list(self._named.values())
        self._references = dict(references or {})
        begin = self._named if start is None else dict(zip(self._named, self._match("start", start), strict=True))
        self._start = [p.detach().clone() for p in begin.values()]
        given = {name: self._match(name, weights) for name, weights in (directions or {}).items()}
        if probe and probe.right and not self._quiet:
            given["trait-gradient"] = look(self.model, probe, self.recording.stream, self._parameters).gradient
        self._directions = WeightDirections(self._parameters, given)
        self._series = Series(self._parameters, self.optimizer, self._directions, self.recording)
        each = stream_size(self.model, sum(map(len, probe.rows)), self.recording.stream) if probe else 0
        looks, self._half = self.recording.affordable(steps or 1 << 40, each, len(self._references))
        self._looks = set(looks)
        self._done = 0
        self._examples: Examples | None = None
        self._writer: Writer | None = None
        self._held = ExitStack()
        self._rescue: weakref.finalize | None = None

    def _trained(self) -> tuple[dict[str, torch.nn.Parameter], dict[str, torch.nn.Parameter]]:
        """(what is recorded, all other parameters of the model), by name; SublimError where there is none to record."""
        owned = {id(p) for p in self._owned()}
        named = dict(self.model.named_parameters())
        seen = {name: p for name, p in named.items() if p.requires_grad or id(p) in owned}
        if not seen or not any(p.requires_grad for p in seen.values()):
            raise SublimError("nothing to record: no parameter of the model requires a gradient")
        if self.optimizer is not None and not owned & {id(p) for p in named.values()}:
            raise SublimError("the optimizer holds none of the model's parameters: it would change another model")
        return seen, {name: p for name, p in named.items() if name not in seen}

    def _owned(self) -> list[Tensor]:
        """What the optimizer holds now."""
        return [p for group in self.optimizer.param_groups for p in group["params"]] if self.optimizer else []

    def _match(self, name: str, weights: Weights) -> list[Tensor]:
        """A direction's tensors in the order of the weights that train; zero for what is frozen and not given."""
        tensors = []
        for own, p in self._named.items():
            if own not in weights and not p.requires_grad:
                tensors.append(p.detach() if name == "start" else torch.zeros_like(p))
            elif own not in weights or weights[own].shape != p.shape:
                raise SublimError(f"direction '{name}' has no tensor of the shape {list(p.shape)} for {own}")
            else:
                tensors.append(weights[own].to(p.device))
        return tensors

    # --- the block ----------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """The first line of the manifest: what is recorded, and the names of all axes."""
        r = self.recording
        hook = ["example", "position", "d_model"]
        shared = {id(p): name for name, p in self._named.items()}
        every = self.model.named_parameters(remove_duplicate=False)
        tied = {name: shared[id(p)] for name, p in every if id(p) in shared and name not in self._named}
        return {
            "model": self.model.config.model_type,  # type: ignore[union-attr]
            "steps": self.steps,
            "cadence": {
                "shard": r.shard,
                "series_weights": r.series_weights,
                "moments": r.moments,
                "stream": list(r.stream),
                "weight_bytes": r.weight_bytes,
                "examples": r.examples,
                **({"half": True} if self._half else {}),
                **({"probe_steps": list(r.probe_steps)} if r.probe_steps else {}),
                **({"hooks": r.model_dump(mode="json")["hooks"]} if r.hooks else {}),
            },
            "start": weights_hash(dict(zip(self._named, self._start, strict=True))),
            **({"tied": tied} if tied else {}),
            "directions": self._directions.names,
            "probe": self.probe.about() if self.probe else None,
            "lengths": [len(row) for row in self.probe.rows] if self.probe else [],
            "coords": {
                "parameter": list(self._named),
                "member": list(self.probe.members) if self.probe else [],
                "place": list(r.positions),
            },
            "dims": [
                ["full/*", []],  # first: a weight's own name may hold any of the words below
                ["examples/ids", ["row", "position"]],
                ["examples/*", ["row", "place", "d_model"]],
                *([f"*{name}", axes_of_recorded(name)] for name in self._inside.names),
                ["*blocks.*", hook],
                ["*answers", ["question", "member"]],
                ["loss", []],
                ["*probe_loss", []],
                ["*", ["parameter"]],
            ],
        }

    def reaches(self, step: int) -> bool:
        """Whether an earlier, interrupted recording of the same training is whole up to `step`."""
        return reaches(self.path, self.about(), step)

    def begin(self, step: int) -> None:
        """Goes on after `step` updates, whose weights the model now has; what was recorded later is dropped."""
        self._done = self._series.first = step

    def __enter__(self) -> "Recorder":
        if self._quiet:
            return self
        if not (self._done and self.reaches(self._done)):
            self._keep_what_lies_there()
        self._writer = Writer(self.path, self.about(), self._done)
        if self.optimizer is not None:
            own = weakref.ref(self)  # a recorder that is let go of writes what it has, though the optimizer lives on
            look_on = self.optimizer.register_step_pre_hook(lambda *_: (r := own()) and r._see_gradients())
            self._held.callback(look_on.remove)
        if self.recording.examples:
            seen = watch_examples(self.model, self.recording.positions, self.pad)
            self._examples = self._held.enter_context(seen)
            self._examples.awake = self._done % self.recording.examples == 0
        # Not of self: it must not live on for this. It is called when the recorder goes, or the process ends.
        self._rescue = weakref.finalize(self, _write_rest, self._series, self._parts(), self._writer, os.getpid())
        if self._done == 0:
            self._write_references()
            self._keep(0)
            self._see_inside()
        return self

    def _keep_what_lies_there(self) -> None:
        """Raises SublimError where a trace would be overwritten that nobody said may go."""
        if not self._overwrite and (self.path / MANIFEST).exists():
            raise SublimError(
                f"{self.path} holds a trace already, which stays as it is: give another path, or overwrite=True"
            )

    def _write_references(self) -> None:
        """What the other models see on the probe."""
        for name, reference in self._references.items() if self.probe else ():
            with reference() as model:
                self._write_probe(f"{name}/", model, f"reference-{name}")
                assert self._writer
                self._inside.reference(model, name, self._writer)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._rescue:
            self._rescue.detach()
        self._held.close()
        if self._quiet:
            return
        if kind is not None:
            with suppress(Exception):  # what ends the block is told, not what follows from it
                self.flush()
            return
        self.flush()
        if self._done not in self._looks:
            self._keep(self._done, last=True)
        assert self._writer
        if self._done != self.steps:
            self._see_inside(last=True)
        self._inside.write(self._writer, self._done)
        self._writer.sync()

    def record_states(self, states: Iterable[tuple[int, torch.nn.Module]]) -> None:
        """Records models of the same shape as the states after so many updates, the recorder's own model first."""
        own = self.model
        self._keep_what_lies_there()
        self._writer = Writer(self.path, self.about())
        self._write_references()
        for step, model in states:
            self._done, self.model = step, model
            self._parameters = [dict(model.named_parameters())[name] for name in self._named]
            self._keep(step, last=step == self.steps)
            self._see_inside()
        self._inside.write(self._writer, self._done)
        self._writer.sync()
        self.model = own

    # --- each update --------------------------------------------------------------------------------------------------

    def _see_gradients(self, *_: object) -> None:
        """Just before the optimizer moves."""
        self._series.see_gradients(self._done)

    def step(self, loss: Tensor | float = float("nan")) -> None:
        """Ends an update: call it after the optimizer's step, with the loss that was minimised."""
        if self.optimizer is None:
            raise SublimError("a recorder without an optimiser cannot measure updates: give it the one that steps")
        if self._quiet:
            return
        if unseen := [name for name, p in self._unseen.items() if p.requires_grad]:
            self._refuse_unseen(unseen)
        if len(self._series.losses) == self.recording.shard:
            self.flush()
        self._series.see_update(self._done, loss)
        self._done += 1
        if self._examples:
            assert self._writer
            self._examples.end_step(self._done - 1, self._writer)
            self._examples.awake = self._done % self.recording.examples == 0
        if self._done in self._looks:
            self._keep(self._done)
        self._see_inside()

    def _refuse_unseen(self, names: list[str]) -> None:
        """Raises SublimError where the optimizer has begun to train parameters that are not recorded."""
        owned = {id(p) for p in self._owned()}
        if late := [name for name in names if id(self._unseen[name]) in owned]:
            raise SublimError(
                f"{late[0]} trains since update {self._done}, and the trace has no place for it: give the optimizer "
                "all that will train before the recorder is made; what is frozen may be unfrozen later"
            )

    def flush(self) -> None:
        """Writes the series so far as a shard and forces the trace to disk; a state kept after this can be resumed."""
        if self._quiet:
            return
        assert self._writer
        for part in self._parts():
            part.write(self._writer, self._done)
        self._series.write(self._writer, self._done)
        self._writer.sync()

    def _parts(self) -> list[Examples | Inside]:
        """What keeps something until it is written, beside the series."""
        return [*([self._examples] if self._examples else []), self._inside]

    def _see_inside(self, last: bool = False) -> None:
        """Between two updates: the hook points whose turn has come."""
        assert self._writer
        with self._examples.asleep() if self._examples else nullcontext():
            self._inside.see(self.model, self._done, self._writer, last)

    # --- a close look -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _keep(self, step: int, last: bool = False) -> None:
        """Between two updates: the probe, and weight-sized tensors where their turn has come."""
        with self._examples.asleep() if self._examples else nullcontext():
            gradient = self._write_probe("", self.model, "probe") if self.probe else None
        assert self._writer
        delta = minus(self._parameters, self._start)
        small = {"delta_norm": norms(delta), **self._directions.dots("delta", delta)}
        small |= {f"length/{name}": length for name, length in self._directions.lengths.items()}
        if gradient:
            small["trait_gradient_norm"] = norms(gradient)
            small |= self._directions.dots("trait_gradient", gradient)
        self._writer.append("state", [step], step, {name: value[None].float() for name, value in small.items()})
        self._write_full(step, delta, last or step == self.steps)

    def _write_full(self, step: int, delta: list[Tensor], last: bool) -> None:
        """The delta of every weight, and at the end the moments, where the budget allows it at this step."""
        assert self._writer
        moments = self._series.moments()
        total = sum(p.numel() for p in self._parameters)
        times = self.recording.full(self.steps or _LONG, total, 1 + len(moments))
        if step and (step in times or (last and times)):
            kept = {"delta": delta, **(moments if last else {})}
            flat = {
                f"full/{kind}/{name}": value[None]
                for kind, tensors in kept.items()
                for name, value in zip(self._named, tensors, strict=True)
            }
            self._writer.append("full", [step], step, flat)

    def _write_probe(self, prefix: str, model: torch.nn.Module, sort: str) -> list[Tensor]:
        """Records a close look at a model; gives the trait's gradient in its weights, if it is what trains."""
        assert self.probe and self._writer
        own = self._parameters if model is self.model else []
        seen = look(model, self.probe, self.recording.stream, own)
        kept = {n: t.bfloat16() if self._half and "blocks." in n else t for n, t in seen.tensors.items()}
        self._writer.append(sort, [self._done], self._done, {prefix + n: t[None] for n, t in kept.items()})
        return seen.gradient


def _plain(model: Any) -> torch.nn.Module:
    """The model within DistributedDataParallel, or itself. Raises SublimError for what is no model."""
    if isinstance(model, DistributedDataParallel):
        return model.module
    if not isinstance(model, torch.nn.Module):
        raise SublimError(f"a recorder watches the model that trains, not a {type(model).__name__}: take x.load()")
    return model


def _rank() -> int:
    """The number of this process among those that train together; 0 where it is alone."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if there else 0


def _write_rest(series: Series, parts: Sequence[Examples | Inside], writer: Writer, process: int) -> None:
    """Writes what a recorder has seen whose block was never left; not in a fork of its process."""
    if os.getpid() == process:
        done = series.first + len(series.losses)
        for part in parts:
            part.write(writer, done)
        series.write(writer, done)
        writer.sync()
