"""Observes a training and writes its trace, without changing a bit of it. The file format is in trace.py."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.core.errors import SublimError
from sublim_interp.models.hooks import attached
from sublim_interp.models.trainable import trained_parameters
from sublim_interp.stats.margin import margin
from sublim_interp.training.optimizers import all_moments
from sublim_interp.training.recording.cadence import Cadence, stream_names
from sublim_interp.training.recording.examples import Examples, watch_examples
from sublim_interp.training.recording.probe import Probe, Reference, Weights
from sublim_interp.training.recording.trace import Writer, reaches

_LONG = 1 << 16
"""Updates of a training whose length is not known, where a budget must be shared out."""


class Recorder:
    """Records what `optimizer` does to `model`, as a `with` block; `step(loss)` ends each update.

        with Recorder(model, optimizer, "trace") as r:
            for batch in batches:
                optimizer.zero_grad(); loss = …; loss.backward(); optimizer.step(); r.step(loss)

    The weights that the model has when the recorder is made are the start θ_0 that deltas are measured from.
    `directions` are directions in weight space, `references` other models that see the same probe. `steps`, where the
    length is known, puts a probe on the last update; else there is one when the block ends.
    Without an optimiser no update can be measured: `step` raises SublimError then, `record_states` needs none.
    Memory does not grow with the number of updates.
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
        cadence: Cadence | None = None,
    ) -> None:
        self.model, self.optimizer, self.path = model, optimizer, Path(path)
        self.cadence, self.probe, self.steps = cadence or Cadence(), probe, steps
        self._named = trained_parameters(model)
        if not self._named:
            raise SublimError("nothing to record: no parameter of the model requires a gradient")
        self._parameters = list(self._named.values())
        self._states = all_moments()
        self._every = self.cadence.every(sum(p.numel() for p in self._parameters))
        self._references = dict(references or {})
        self._start = [p.detach().clone() for p in self._parameters]
        self._before = [p.detach().clone() for p in self._parameters]
        given = {name: self._match(name, weights) for name, weights in (directions or {}).items()}
        if probe and probe.right:
            given["trait-gradient"] = self._probed(model)[1]
        self._directions = list(given)
        self._stacked = [
            torch.stack([d.to(p).flatten() for d in own])
            for p, own in zip(self._parameters, zip(*given.values(), strict=True), strict=bool(given))
        ]
        """For each parameter, all directions: [direction, number]."""
        self._lengths = {name: torch.stack(_norms(d)) for name, d in given.items()}
        self._log_spaced = set(self.cadence.probes(steps or 1 << 40))
        self._done = 0
        self._rows: dict[str, dict[int, dict[str, Tensor]]] = {"norms": {}, "moments": {}}
        """Sort of shard → update → what was measured of it."""
        self._losses: list[Any] = []
        self._first = 0
        self._gradients: dict[str, Tensor] = {}
        self._examples: Examples | None = None
        self._writer: Writer | None = None
        self._held = ExitStack()

    def _match(self, name: str, weights: Weights) -> list[Tensor]:
        for own, p in self._named.items():
            if own not in weights or weights[own].shape != p.shape:
                raise SublimError(f"direction '{name}' has no tensor of the shape {list(p.shape)} for {own}")
        return [weights[own] for own in self._named]

    # --- the block ----------------------------------------------------------------------------------------------------

    def about(self) -> dict[str, Any]:
        """The first line of the manifest: what is recorded, and the names of all axes."""
        c = self.cadence
        hook = ["example", "position", "d_model"]
        return {
            "model": self.model.config.model_type,  # type: ignore[union-attr]
            "steps": self.steps,
            "cadence": {
                "shard": c.shard,
                "series_weights": c.series_weights,
                "moments": c.moments,
                "stream": list(c.stream),
                "weight_bytes": c.weight_bytes,
                "examples": c.examples,
            },
            "directions": self._directions,
            "probe": self.probe.about() if self.probe else None,
            "lengths": [len(row) for row in self.probe.rows] if self.probe else [],
            "coords": {
                "parameter": list(self._named),
                "member": list(self.probe.members) if self.probe else [],
                "place": list(c.positions),
            },
            "dims": [
                ["examples/ids", ["row", "position"]],
                ["examples/*", ["row", "place", "d_model"]],
                ["*blocks.*", hook],
                ["*answers", ["question", "member"]],
                ["loss", []],
                ["*probe_loss", []],
                ["full/*", []],
                ["*", ["parameter"]],
            ],
        }

    def reaches(self, step: int) -> bool:
        """Whether an earlier, interrupted recording of the same training is whole up to `step`."""
        return reaches(self.path, self.about(), step)

    def begin(self, step: int) -> None:
        """Goes on after `step` updates, whose weights the model now has; what was recorded later is dropped."""
        self._done = self._first = step

    def __enter__(self) -> "Recorder":
        self._writer = Writer(self.path, self.about(), self._done)
        if self.optimizer is not None:
            self._held.callback(self.optimizer.register_step_pre_hook(self._see_gradients).remove)
        if self.cadence.examples:
            self._examples = self._held.enter_context(watch_examples(self.model, self.cadence))
            self._examples.awake = self._done % self.cadence.examples == 0
        if self._done == 0:
            self._write_references()
            self._keep(0)
        return self

    def _write_references(self) -> None:
        for name, reference in self._references.items() if self.probe else ():
            with reference() as model:
                self._write_probe(f"{name}/", model, f"reference-{name}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._held.close()
        if kind is None:
            self.flush()
            if self._done not in self._log_spaced:
                self._keep(self._done, last=True)
            assert self._writer
            self._writer.sync()

    def record_states(self, states: Iterable[tuple[int, torch.nn.Module]]) -> None:
        """Records models of the same shape as the states after so many updates, the recorder's own model first."""
        own = self.model
        self._writer = Writer(self.path, self.about())
        self._write_references()
        for step, model in states:
            self._done, self.model = step, model
            self._parameters = [dict(model.named_parameters())[name] for name in self._named]
            self._keep(step, last=step == self.steps)
        self.model = own

    # --- each update --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _see_gradients(self, *_: object) -> None:
        """Just before the optimiser moves: the gradients as they enter the update, clipped if they are."""
        if self._done % self._every:
            return
        # A GradScaler leaves it to a fused optimiser to divide by the scale, and to skip an update that overflowed.
        if (overflow := getattr(self.optimizer, "found_inf", None)) is not None and overflow:
            return
        _copy(self._before, self._parameters)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        seen = {"gradient_norm": torch.stack(_norms(gradients)), **self._against("gradient", gradients)}
        scale = getattr(self.optimizer, "grad_scale", None)
        self._gradients = seen if scale is None else {name: value / scale for name, value in seen.items()}

    def _against(self, what: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Dot products with each direction, per parameter."""
        if not self._directions:
            return {}
        dots = torch.stack([d @ t.flatten().to(d) for d, t in zip(self._stacked, tensors, strict=True)], 1)
        return {f"{what}_dot/{name}": row for name, row in zip(self._directions, dots, strict=True)}

    @torch.no_grad()
    def step(self, loss: Tensor | float = float("nan")) -> None:
        """Ends an update: call it after the optimiser's step, with the loss that was minimised."""
        if self.optimizer is None:
            raise SublimError("a recorder without an optimiser cannot measure updates: give it the one that steps")
        if len(self._losses) == self.cadence.shard:
            self.flush()
        if self._done % self._every == 0:
            self._measure()
        self._losses.append(loss.detach() if isinstance(loss, Tensor) else loss)
        self._done += 1
        if self._examples:
            assert self._writer
            self._examples.end_step(self._done - 1, self._writer)
            self._examples.awake = self._done % self.cadence.examples == 0
        if self._done in self._log_spaced:
            self._keep(self._done)

    def _measure(self) -> None:
        """Norms and projections of the update that the optimiser has just made; nothing where it made none."""
        if not self._gradients:
            return
        update = _minus(self._parameters, self._before)
        norms = {**self._gradients, "update_norm": torch.stack(_norms(update)), **self._against("update", update)}
        self._rows["norms"][self._done], self._gradients = norms, {}
        if self._done % (self._every * self.cadence.moments):
            return
        moments = {f"{state}_norm": self._moments(state) for state in self._states}
        if found := {name: torch.stack(_norms(tensors)) for name, tensors in moments.items() if tensors}:
            self._rows["moments"][self._done] = found

    def set_loss(self, loss: float) -> None:
        """Replaces the loss of the latest update, for loops that tell it later."""
        if self._losses:
            self._losses[-1] = loss

    def flush(self) -> None:
        """Writes the series so far as a shard and forces the trace to disk; a state kept after this can be resumed."""
        assert self._writer
        if self._examples:
            self._examples.write(self._writer, self._done)
        for sort, rows in self._rows.items():
            # One shard, unless the optimiser began or ceased to keep a moment on the way.
            for names, some in groupby(rows.items(), key=lambda item: tuple(item[1])):
                updates, values = zip(*some, strict=True)
                series = {name: torch.stack([row[name] for row in values]).float().cpu() for name in names}
                self._writer.append(sort, updates, self._done, self._with_cosines(series))
            rows.clear()
        if self._losses:
            losses = torch.tensor([float(value) for value in self._losses])
            self._writer.append("series", range(self._first, self._done), self._done, {"loss": losses})
            self._losses, self._first = [], self._done
        self._writer.sync()

    def _with_cosines(self, series: dict[str, Tensor]) -> dict[str, Tensor]:
        """The series, and with every dot product the cosine to that direction."""
        cosines = {}
        for what in ("gradient", "update"):
            for name, length in self._lengths.items():
                if f"{what}_dot/{name}" in series:
                    scale = (series[f"{what}_norm"] * length.cpu()).clamp_min(1e-30)
                    cosines[f"{what}_cos/{name}"] = series[f"{what}_dot/{name}"] / scale
        return series | cosines

    def _moments(self, state: str) -> list[Tensor]:
        """One state of the optimiser for every parameter, or nothing where it has none."""
        if self.optimizer is None:
            return []
        found = [self.optimizer.state.get(p, {}).get(state) for p in self._parameters]
        if all(value is None for value in found):
            return []
        return [torch.zeros_like(p) if v is None else v for v, p in zip(found, self._parameters, strict=True)]

    # --- at log-spaced steps ------------------------------------------------------------------------------------------

    def _keep(self, step: int, last: bool = False) -> None:
        """Between two updates: the probe, and weight-sized tensors where their turn has come."""
        with self._examples.asleep() if self._examples else nullcontext():
            gradient = self._write_probe("", self.model, "probe") if self.probe else None
        assert self._writer
        delta = _minus(self._parameters, self._start)
        small = {"delta_norm": torch.stack(_norms(delta)), **self._against("delta", delta)}
        for name, length in self._lengths.items():
            small[f"length/{name}"] = length
        if gradient:
            small["trait_gradient_norm"] = torch.stack(_norms(gradient))
            small |= self._against("trait_gradient", gradient)
        self._writer.append("state", [step], step, {name: value[None].float() for name, value in small.items()})
        moments = {state: found for state in self._states if (found := self._moments(state))}
        total = sum(p.numel() for p in self._parameters)
        times = self.cadence.full(self.steps or _LONG, total, 1 + len(moments))
        last = last or step == self.steps
        if step and (step in times or (last and times)):
            kept = {"delta": delta, **(moments if last else {})}
            flat = {
                f"full/{kind}/{name}": value[None]
                for kind, tensors in kept.items()
                for name, value in zip(self._named, tensors, strict=True)
            }
            self._writer.append("full", [step], step, flat)

    def _write_probe(self, prefix: str, model: torch.nn.Module, sort: str) -> list[Tensor]:
        """Records the probe's stream on a model, and returns the trait's gradient in its weights, if it has a trait."""
        assert self.probe and self._writer
        tensors, gradient = self._probed(model)
        self._writer.append(sort, [self._done], self._done, {prefix + n: t[None] for n, t in tensors.items()})
        return gradient

    @torch.enable_grad()
    def _probed(self, model: torch.nn.Module) -> tuple[dict[str, Tensor], list[Tensor]]:
        """(stream and gradients on the probe, the trait's gradient in the weights that train)."""
        probe = self.probe
        assert probe
        device = next(model.parameters()).device
        trained = self._parameters if model is self.model else []
        names = stream_names(model, self.cadence.stream)
        tensors: dict[str, Tensor] = {}
        weights: list[Tensor] = []
        parts = [(probe.rows[: probe.questions], None), (probe.rows[probe.questions :], probe.learnt)]
        seen: list[dict[str, Tensor]] = []
        with _resting(model):
            for rows, learnt in parts:
                if not rows:
                    continue
                width = max(map(len, rows))
                ids = torch.zeros(len(rows), width, dtype=torch.long)
                for i, r in enumerate(rows):
                    ids[i, : len(r)] = torch.tensor(r)
                stream, logits = _forward(model, names, ids.to(device))
                target: Tensor | None = None
                if learnt is None and probe.tokens:
                    last = torch.tensor([len(r) - 1 for r in rows])
                    log = logits[range(len(rows)), last].float().log_softmax(-1)[:, list(probe.tokens)]
                    tensors["answers"] = log.detach().cpu()
                    target = margin(log, probe.right).mean() if probe.right else None
                elif learnt:
                    counts = torch.zeros(ids.shape, dtype=torch.bool)
                    for i, (r, first) in enumerate(zip(rows, learnt, strict=True)):
                        counts[i, first : len(r)] = True
                    predicted = logits[:, :-1][counts[:, 1:].to(device)].float()
                    target = F.cross_entropy(predicted, ids[counts].to(device))
                    tensors["probe_loss"] = target.detach().cpu()
                where = list(stream.values()) + (trained if learnt is None else [])
                found: Sequence[Tensor | None] = [None] * len(where)
                if target is not None:
                    found = torch.autograd.grad(target, where, allow_unused=True)
                    if learnt is None:
                        own = zip(found[len(names) :], trained, strict=True)
                        weights = [torch.zeros_like(p) if g is None else g for g, p in own]
                real = torch.arange(width) < torch.tensor([len(r) for r in rows])[:, None]
                one: dict[str, Tensor] = {}
                for name, gradient in zip(names, found, strict=False):
                    value = stream[name].detach()
                    one[name] = value.cpu()[real]
                    one[f"{name}.grad"] = torch.zeros_like(one[name]) if gradient is None else gradient.cpu()[real]
                seen.append(one)
        for name in seen[0]:
            tensors[name] = torch.cat([s[name] for s in seen])
        return tensors, weights


# One call for all tensors: a loop over them would cost more than the arithmetic.
@torch.no_grad()
def _norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(torch._foreach_norm(list(tensors), 2, torch.float32))  # type: ignore[reportPrivateImportUsage]


@torch.no_grad()
def _minus(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return list(torch._foreach_sub(list(a), list(b)))  # type: ignore[reportPrivateImportUsage]


@torch.no_grad()
def _copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(to), list(source))  # type: ignore[reportPrivateImportUsage]


def _forward(model: torch.nn.Module, names: list[str], ids: Int[Tensor, "example position"]) -> tuple[dict, Tensor]:
    """(the stream's tensors in the graph, logits)."""
    stream: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        stream[name] = value if value.requires_grad else value.requires_grad_()

    with attached(model, {name: partial(keep, name) for name in names}):
        logits = model(input_ids=ids, use_cache=False).logits
    return stream, logits


@contextmanager
def _resting(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside the block, so that no dropout draws a random number; each module's own mode after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
