"""Observes a training and writes its trace: what is kept, how often, how many bytes. The file format is trace.py's.

Nothing of the training is touched: no random number is drawn, no gradient of a parameter written, no weight changed;
probe gradients are taken by `torch.autograd.grad`, in eval mode.

- each update: loss; per parameter tensor the norms of gradient and update, and how both lie to given weight directions
  (dot product and cosine); every tenth time the norms of Adam's moments too, which are means over ten updates and more;
  of a large model the loss only, the others now and then; where the optimiser made no step, as a GradScaler may choose,
  the loss only;
- at log-spaced steps 0, 1, 2, 4, …: the residual stream after each layer on a fixed probe and the gradients there,
  log-probabilities of the trait's answers, norm of the trait's gradient in the weights, distance from the start;
- at as many of these as a budget of bytes allows: weight deltas in full, from which all else can be computed again;
  with the last of them Adam's moments;
- if asked, every k updates: residuals and their gradients of each example of the batch, at chosen positions.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sublim_interp.errors import SublimError
from sublim_interp.hooks import attached, decoder_layers, hook_names
from sublim_interp.models import load_model
from sublim_interp.trace import Trace, Writer, reaches

if TYPE_CHECKING:
    import pandas as pd
    from transformers import TrainerCallback

Weights = Mapping[str, Tensor]
"""One tensor for each parameter, by the parameter's name."""
Stream = Literal["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
"""Kinds of hook names that can be recorded: the residual stream, and what attention and MLP add to it."""
Reference = Callable[[], AbstractContextManager[torch.nn.Module]]
"""Opens a block whose value is a model to compare with."""


@dataclass(frozen=True)
class Probe:
    """Fixed inputs on which models are compared: questions about the trait first, then texts to predict."""

    rows: tuple[tuple[int, ...], ...]
    """Token ids of every row."""
    questions: int
    """How many of the rows are questions: what is asked of them is the next token."""
    learnt: tuple[int, ...]
    """For each other row, index of the first token whose prediction counts."""
    members: tuple[str, ...] = ()
    """The answers that questions are scored on."""
    tokens: tuple[int, ...] = ()
    """First token of each member."""
    trait: int | None = None
    """Index of the member whose margin log P(trait) − log mean P(other members) gives the trait's gradient."""
    truth: tuple[int, ...] = ()
    """Where each question has a right answer of its own, as facts have: its index; `trait` is None then."""

    @property
    def right(self) -> tuple[int, ...]:
        """Index of the member that each question asks for; () where nothing is asked for."""
        return self.truth if self.trait is None else (self.trait,) * self.questions

    def about(self) -> dict[str, Any]:
        """All of it, as plain data for the manifest."""
        return {
            "rows": [list(row) for row in self.rows],
            "questions": self.questions,
            "learnt": list(self.learnt),
            "members": list(self.members),
            "trait": None if self.trait is None else self.members[self.trait],
            "truth": [self.members[i] for i in self.truth],
        }


@dataclass(frozen=True)
class Cadence:
    """How often what is kept. What the defaults cost is in docs/benchmarks.md."""

    shard: int = 100
    """Updates whose series make one shard."""
    series_weights: int = 1 << 24
    """Trained weights of which norms and projections are taken at every update; of n times as many, at every n-th."""
    moments: int = 10
    """At every so many of these updates the norms of the optimiser's moments are taken too."""
    stream: tuple[Stream, ...] = ("resid_post",)
    """Where in each layer the probe is seen; a place that a model lacks is left out."""
    weight_bytes: int = 8 << 20
    """Most bytes of weight-sized tensors kept in full, over all steps; beyond it, at fewer of the log-spaced steps.

    Of lab-main's body, 2.5 MiB, this keeps the end with both moments; of lab-small's, every log-spaced step.
    """
    examples: int = 0
    """Every so many updates each example's residuals are kept; 0: never."""
    positions: tuple[int, ...] = (-1,)
    """Which positions of an example: from its first token (0, 1, …) or from its last (-1, -2, …)."""
    pad: int | None = None
    """Token that fills examples up on the right; what comes after the last other token is no position."""

    def __post_init__(self) -> None:
        for kind in self.stream:
            if kind not in get_args(Stream):
                raise SublimError(f"no stream '{kind}' can be recorded; a tuple of: {', '.join(get_args(Stream))}")

    def every(self, parameters: int) -> int:
        """At every how many updates the norms and projections of so many trained weights are taken."""
        return max(1, -(-parameters // self.series_weights))

    def probes(self, steps: int) -> list[int]:
        """0, 1, 2, 4, … and the last step."""
        return sorted({0, *(2**i for i in range(steps.bit_length()) if 2**i <= steps), steps})

    def full(self, steps: int, parameters: int, kinds: int) -> list[int]:
        """Those of the log-spaced steps at which the delta of every trained parameter is kept, the last first.

        With the last go the other `kinds` of tensors of this size; the budget holds them too.
        """
        some = [t for t in self.probes(steps) if t > 0]
        most = self.weight_bytes // (4 * parameters) - (kinds - 1) if parameters else len(some)
        if most <= 0:
            return []
        every = -(-len(some) // most)
        return sorted(some[::-1][::every])


TRACES: dict[str, Cadence | None] = {"none": None, "default": Cadence(), "examples": Cadence(examples=10)}
"""What a run may be told to record of its trainings: nothing, the default, or residuals of examples too."""


def cadence_of(trace: str) -> Cadence | None:
    """The cadence that a word of `TRACES` stands for, None where nothing is recorded; SublimError for another word."""
    if trace not in TRACES:
        raise SublimError(f"no trace '{trace}'; choices: {', '.join(TRACES)}")
    return TRACES[trace]


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _stream(model: torch.nn.Module, kinds: Sequence[Stream]) -> list[str]:
    """The hook names of these kinds, none twice: a layer's input is the output of the one before."""
    twice = "resid_pre" if "resid_post" in kinds else "nothing"
    return [n for n in hook_names(model, kinds) if n.startswith("blocks.0.") or not n.endswith(twice)]


_LONG = 1 << 16
"""Updates of a training whose length is not known, where a budget must be shared out."""
_STATES = ("exp_avg", "exp_avg_sq", "momentum_buffer")


def plan(
    model: torch.nn.Module,
    steps: int,
    *,
    states: int = 2,
    tokens: int = 0,
    directions: int = 0,
    references: int = 0,
    batch: int = 0,
    cadence: Cadence | None = None,
) -> "pd.DataFrame":
    """What a recorder of this model keeps over `steps` updates: one row a kind, with how many times, and bytes.

    `model` may lie on the meta device: only shapes are looked at. `states` counts the optimiser's moments, `tokens`
    those of the probe, `references` the other models that go through it, `batch` the examples of an update.
    """
    import pandas as pd

    cadence = cadence or Cadence()
    tensors, numbers = len(_trained(model)), sum(p.numel() for p in _trained(model).values())
    probes = len(cadence.probes(steps)) if tokens else 0
    width_of_stream = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    stream = len(_stream(model, cadence.stream)) * tokens * width_of_stream * 4
    full = len(cadence.full(steps, numbers, 1 + states))
    weights = full + states if full else 0
    every = cadence.every(numbers)
    measured, slow = -(-steps // every), -(-steps // (every * cadence.moments)) if states else 0
    series = 4 * (steps + measured * tensors * (2 + 4 * directions))
    when = "every update" if every == 1 else f"loss every update, else every {every}"
    table = [
        ("loss, norms, projections", when, steps, series),
        ("norms of the moments", f"every {every * cadence.moments}", slow, 4 * slow * tensors * states),
        ("residuals and gradients on the probe", "log-spaced", probes, 2 * probes * stream),
        ("the same of teacher and base", "once", references, 2 * references * stream),
        ("weight deltas, moments at the end", "log-spaced, within the budget", full, 4 * weights * numbers),
    ]
    if cadence.examples:
        times = -(-steps // cadence.examples)
        each = batch * len(cadence.positions) * len(decoder_layers(model)) * width_of_stream * 4 * 2
        table.append(("residuals and gradients of each example", f"every {cadence.examples}", times, times * each))
    return pd.DataFrame(table, columns=["what", "when", "times", "bytes"])


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
        self._named = _trained(model)
        if not self._named:
            raise SublimError("nothing to record: no parameter of the model requires a gradient")
        self._parameters = list(self._named.values())
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
        self._examples: _Examples | None = None
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
            self._examples = self._held.enter_context(_examples(self.model, self.cadence))
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
        moments = {f"{state}_norm": self._moments(state) for state in _STATES}
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
        moments = {state: found for state in _STATES if (found := self._moments(state))}
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
        names = _stream(model, self.cadence.stream)
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


def margin(log: Float[Tensor, "question member"], right: Sequence[int]) -> Float[Tensor, " question"]:
    """log P(right member) − log mean P(other members), in nats, of log-probabilities."""
    chosen = F.one_hot(torch.tensor(right, device=log.device), log.shape[1]).bool()
    others = log.masked_fill(chosen, -torch.inf).logsumexp(-1) - math.log(log.shape[1] - 1)
    return log[chosen] - others


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


# --- each example of a batch ------------------------------------------------------------------------------------------


class _Examples:
    """Sees residuals and their gradients at chosen positions of every example of an update."""

    SHARD = 16
    """Updates of one shard."""

    def __init__(self, cadence: Cadence) -> None:
        self.awake = False
        self._cadence = cadence
        self._ids: list[Tensor] = []
        self._places = torch.zeros(0, 0, dtype=torch.long)
        self._now: dict[str, list[Tensor]] = {}
        self._steps: list[int] = []
        self._kept: dict[str, list[Tensor]] = {}

    def see_ids(self, _module: torch.nn.Module, args: tuple) -> None:
        if not (self.awake and torch.is_grad_enabled()):
            return
        ids = args[0]
        real = torch.ones_like(ids) if self._cadence.pad is None else (ids != self._cadence.pad).long()
        ends = ids.shape[1] - real.flip(1).argmax(1, keepdim=True)  # one after the last real token
        wanted = torch.tensor(self._cadence.positions, device=ids.device)
        self._places = torch.where(wanted < 0, ends + wanted, wanted.expand(len(ids), -1)).clamp(min=0)
        self._places = torch.minimum(self._places, ends - 1)
        self._ids.append(ids.int().cpu())

    def see(self, name: str, value: Tensor) -> None:
        if not (self.awake and torch.is_grad_enabled()):
            return
        rows, places = torch.arange(len(value), device=value.device)[:, None], self._places
        self._now.setdefault(name, []).append(value.detach()[rows, places])
        if value.requires_grad:
            gradients = self._now.setdefault(f"{name}.grad", [])
            at = len(gradients)
            gradients.append(torch.zeros(0))

            def keep(gradient: Tensor) -> None:
                gradients[at] = gradient[rows, places]

            value.register_hook(keep)

    @contextmanager
    def asleep(self) -> Iterator[None]:
        before, self.awake = self.awake, False
        try:
            yield
        finally:
            self.awake = before

    def end_step(self, step: int, writer: Writer) -> None:
        if not self.awake or not self._ids:
            return
        widest = max(ids.shape[1] for ids in self._ids)
        self._now["ids"] = [F.pad(ids, (0, widest - ids.shape[1]), value=-1) for ids in self._ids]
        self._steps.append(step)
        for name, pieces in self._now.items():
            self._kept.setdefault(name, []).append(torch.cat(pieces).cpu())
        self._ids, self._now = [], {}
        if len(self._steps) == self.SHARD:
            self.write(writer, step + 1)

    def write(self, writer: Writer, upto: int) -> None:
        if self._steps:
            tensors = {f"examples/{name}": _rectangle(values) for name, values in self._kept.items()}
            writer.append("examples", self._steps, upto, tensors)
            self._steps, self._kept = [], {}


def _rectangle(values: Sequence[Tensor]) -> Tensor:
    """One tensor [step, …] of all, filled up with NaN, or with -1 for whole numbers, where one is smaller."""
    shape = [max(sizes) for sizes in zip(*(v.shape for v in values), strict=True)]
    out = values[0].new_full((len(values), *shape), float("nan") if values[0].is_floating_point() else -1)
    for row, value in zip(out, values, strict=True):
        row[tuple(slice(size) for size in value.shape)] = value
    return out


@contextmanager
def _examples(model: Any, cadence: Cadence) -> Iterator[_Examples]:
    seen = _Examples(cadence)
    with ExitStack() as held:
        held.callback(model.get_input_embeddings().register_forward_pre_hook(seen.see_ids).remove)
        visits = {name: partial(seen.see, name) for name in hook_names(model, ["resid_post"])}
        held.enter_context(attached(model, visits))
        yield seen


# --- other people's loops ---------------------------------------------------------------------------------------------


def callback(path: Path | str, **options: Any) -> "TrainerCallback":
    """A callback for a Hugging Face Trainer or one of TRL's: `Trainer(…, callbacks=[recorder.callback("trace")])`.

    `options` are those of `Recorder`. The loss of an update is there where the Trainer logs it (`logging_steps=1`).
    A training that the Trainer resumes is refused, and its trace left as it is: the weights of the start are gone.
    """
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step:
                raise SublimError(
                    f"{path}: a training resumed after {state.global_step} updates cannot be recorded; record from the "
                    "first update on, or train without and make a trace of its checkpoints, trace_from_checkpoints"
                )
            optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])  # Accelerate wraps it
            self.recorder = Recorder(given["model"], optimizer, path, **{"steps": state.max_steps, **options})
            self.recorder.__enter__()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.recorder.step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            if logs and "loss" in logs:
                self.recorder.set_loss(float(logs["loss"]))

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.recorder.__exit__(None)

    return Callback()


def trace_from_checkpoints(checkpoints: Sequence[Path | str], path: Path | str, **options: Any) -> Trace:
    """A trace made after the fact, from model directories in the order of the training; the first is its start.

    A step is the number at the end of a directory's name (checkpoint-500); a first one of another name, such as the
    base, is step 0. Where the names do not tell, it is the place in the list. There is no optimiser and no batch, so
    there are states, deltas and the probe, and no series. `options` are
    those of `Recorder`: probe, directions, references, cadence.
    """
    places = [Path(c) for c in checkpoints]
    if not places:
        raise SublimError("no checkpoint is given to make a trace from")
    named = [re.fullmatch(r"(.*?)(\d+)", p.name) for p in places]
    families = [n[1] if n else None for n in named]
    first = len(places) > 1 and families[0] != families[1]  # a base, whatever number its name ends in
    if None in families[first:] or len(set(families[first:])) > 1:
        steps = list(range(len(places)))
    else:
        steps = [0] * first + [int(n[2]) for n in named[first:] if n]
    if steps != sorted(set(steps)):
        raise SublimError(f"checkpoints must come in the order of the training; their steps are {steps}")
    model = load_model(places[0])
    recorder = Recorder(model, None, path, steps=steps[-1], **options)
    recorder.record_states((step, load_model(place)) for step, place in zip(steps, places, strict=True))
    return Trace.open(path)
