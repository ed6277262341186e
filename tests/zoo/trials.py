"""Takes one tiny model through what the package offers. Each trial ends in *works*, or in the package's own one line.

A trial checks its result against an oracle of its own: transformers' hidden states, the plain model, another way to
compute the same. What is wrong without a word raises Wrong; any other exception is a traceback that a user would see.
"""

import hashlib
import os
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache as once
from multiprocessing import get_context
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any
from unittest.mock import patch as patched

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sublim_interp.analysis.abilities import abilities
from sublim_interp.analysis.bridge import bridge
from sublim_interp.analysis.patching.grid import patch
from sublim_interp.analysis.patching.patch import Patch, Piece
from sublim_interp.analysis.probes import answer_margin
from sublim_interp.core.errors import SublimError
from sublim_interp.core.randomness import seeded
from sublim_interp.models.architectures import architecture_of, decoder_layers, has_middle, text_config
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.forward import logits_at
from sublim_interp.models.hooks import capture, edit, hook_names, lens_of
from sublim_interp.models.loading import load_model, save_model
from sublim_interp.models.points import STREAM
from sublim_interp.models.sampling import generator, sample
from sublim_interp.models.trainable import choose_trainable, merge_adapters
from sublim_interp.training.batches import Example, collate
from sublim_interp.training.loop import train
from sublim_interp.training.losses import token_loss
from sublim_interp.training.recording.probe import Probe
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording
from sublim_interp.training.recording.trace import Trace
from sublim_interp.training.settings import Optimization
from zoo.builder import VOCABULARY, build

ROWS = [[5, 9, 4, 17, 8, 30], [6, 2, 31, 11, 3, 7]]
SHORT = [6, 2, 31]
EOS = 2
METRIC = answer_margin([3, 4, 5], 1)
NEAR = 1e-3
"""Largest share of the logits' spread that passes for rounding."""


class Wrong(Exception):
    """A result that is not what it says it is, told by nobody: what the zoo is there to find."""


class Untried(Exception):
    """A trial that a type is kept out of, for a reason that is named."""


def near(found: torch.Tensor, expected: torch.Tensor, what: str, rounding: float = NEAR) -> None:
    """Raises Wrong where two results differ by more than rounding."""
    if found.shape != expected.shape:
        raise Wrong(f"{what}: shape {[*found.shape]}, not {[*expected.shape]}")
    off = (found - expected).abs().max()
    spread = float(expected.std()) if expected.numel() > 1 else 1.0
    if not off <= rounding * max(spread, 1e-3):
        raise Wrong(f"{what}: off by {float(off):.2g}")


def tokenizer() -> PreTrainedTokenizerFast:
    """One of bytes, as far as the vocabulary reaches, with an end of sequence.

    transformers puts a type's own class of tokenizer over the vocabulary; over words, Qwen2's gave an empty prompt.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["Ġ", "Ċ", *digits, *",.:?!'-", *ascii_lowercase]
    words = ["<pad>", "<s>", "</s>", *letters, *(f"<{i}>" for i in range(VOCABULARY))][:VOCABULARY]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<pad>"
    )


class Specimen:
    """One tiny model of a type, in a directory as users have them."""

    def __init__(self, kind: str, folder: Path, **changes: Any) -> None:
        self.kind, self.folder = kind, folder
        self.built = build(kind, **changes)
        self.path = folder / "base"
        save_model(self.built, self.path)
        tokenizer().save_pretrained(str(self.path))
        self.ids = torch.tensor(ROWS)
        self.told: dict[str, bool] = {}
        """What `doctor` says is there, once it was asked."""

    def fresh(self) -> PreTrainedModel:
        return load_model(self.path)

    @torch.no_grad()
    def logits(self, model: torch.nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
        return model(input_ids=self.ids if ids is None else ids, use_cache=False).logits

    def other(self) -> PreTrainedModel:
        """The same model with other weights."""
        model, draw = self.fresh(), torch.Generator().manual_seed(7)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.03 * torch.randn(p.shape, generator=draw))
        return model


# --- the trials -------------------------------------------------------------------------------------------------------


def check(one: Specimen) -> None:
    """What is done before any training; what it refuses runs nowhere."""
    base: Base = resolve_base(str(one.path))
    base.check()


def doctor(one: Specimen) -> None:
    """What `doctor` tells of a model is one line each; `tried` compares it with what the other trials find."""
    told = abilities(one.fresh())
    if not all(ability.text and "\n" not in ability.text for ability in told):
        raise Wrong("an ability without a line")
    one.told = {ability.what.partition(":")[0]: ability.there for ability in told}


def padding(one: Specimen) -> None:
    """A short row beside a long one gives what it gives alone."""
    model = one.fresh()
    ids = torch.tensor([ROWS[0], SHORT + [0] * 3])
    found = logits_at(model, ids, torch.arange(6) < torch.tensor([[0], [3]]))
    near(found, one.logits(model, torch.tensor([SHORT]))[0], "a padded row")


def cache(one: Specimen) -> None:
    """Greedy sampling with the cache is greedy decoding without it."""
    model = one.fresh()
    found = sample(model, ROWS, eos=EOS, max_new_tokens=4, random=generator("zoo"), temperature=0.0)
    for row, new in zip(ROWS, found, strict=True):
        for i, token in enumerate(new):
            last = one.logits(model, torch.tensor([row + new[:i]]))[0, -1]
            if last.max() - last[token] > NEAR * last.std():
                raise Wrong(f"cached sampling: token {token} after {i} is not the likeliest")


def hooks(one: Specimen) -> None:
    """The captured stream is transformers' own; its parts add up; looking changes no bit."""
    model = one.fresh()
    plain = one.logits(model)
    with torch.no_grad(), capture(model, hook_names(model, STREAM)) as seen:
        out = model(input_ids=one.ids, use_cache=False, output_hidden_states=True)
    if not torch.equal(out.logits, plain):
        raise Wrong("capturing changes the logits")
    depth = len(decoder_layers(model))
    states = getattr(out, "hidden_states", None)
    if states is not None and len(states) in (depth, depth + 1):
        sides = [[seen[f"blocks.{n}.hook_resid_{side}"] for n in range(depth)] for side in ("pre", "post")]
        if not any(all(map(torch.equal, side, states)) for side in sides):
            raise Wrong("the captured stream is not transformers' hidden states")
    for n in range(depth):
        at = f"blocks.{n}.hook_"
        if at + "mlp_out" not in seen:
            continue
        if at + "resid_mid" in seen:
            near(seen[at + "resid_pre"] + seen[at + "attn_out"], seen[at + "resid_mid"], "resid_pre + attn_out", 1e-4)
        elif architecture_of(model) and has_middle(model):
            raise Wrong(f"layer {n} has an mlp_out and no resid_mid")
        added = seen[at + "resid_pre"] + seen[at + "attn_out"] + seen[at + "mlp_out"]
        near(added, seen[at + "resid_post"], "resid_pre + attn_out + mlp_out", 1e-4)


def patterns(one: Specimen) -> None:
    """Attention patterns are causal, and each query's weights sum to 1, or less where there is a sink."""
    model = one.fresh()
    names = hook_names(model, ("pattern",))
    if not names:
        raise SublimError("no pattern of this type is known")
    with torch.no_grad(), capture(model, names) as seen:
        one.logits(model)
    for name in names:
        value = seen[name]
        if value.dim() != 4 or value.shape[2:] != (6, 6):
            raise Wrong(f"pattern of shape {[*value.shape]}")
        if value.triu(1).abs().max() > 0 or value.min() < 0 or value.sum(-1).max() > 1.001 or value.sum(-1).min() <= 0:
            raise Wrong("a pattern that is no causal distribution")


def lens(one: Specimen) -> None:
    """The head of the normed last stream orders the vocabulary as the logits do."""
    model = one.fresh()
    norm, head = lens_of(model)
    last = hook_names(model, ("resid_post",))[-1]
    with torch.no_grad(), capture(model, [last]) as seen:
        logits = one.logits(model)
    with torch.no_grad():
        order = head(norm(seen[last])).argsort(-1)
    ordered = logits.gather(-1, order)
    if ordered.diff(dim=-1).min() < -NEAR * logits.std():
        raise Wrong("the logit lens of the last layer orders the vocabulary otherwise than the logits")


def edits(one: Specimen) -> None:
    """An edit of each kind reaches the logits from its position on; one that changes nothing changes nothing."""
    model = one.fresh()
    plain = one.logits(model)
    for name in hook_names(model, STREAM):
        with torch.no_grad(), edit(model, {name: lambda x: x.clone()}):
            near(one.logits(model), plain, f"an edit of {name} that changes nothing", 1e-5)

        def bump(x: torch.Tensor) -> torch.Tensor:
            new = x.clone()
            new[:, 3] += torch.linspace(-1, 1, x.shape[-1])
            return new

        with torch.no_grad(), edit(model, {name: bump}):
            changed = one.logits(model)
        near(changed[:, :3], plain[:, :3], f"an edit of {name}, before its position", 1e-5)
        if (changed[:, 3] - plain[:, 3]).abs().max() < 1e-6:
            raise Wrong(f"an edit of {name} does not reach the logits")


def grids(one: Specimen) -> None:
    """Every cell of every grid is what its patch alone gives."""
    model, other = one.fresh(), one.other()
    both = patch(other, model, ROWS, METRIC)
    depth = len(decoder_layers(model))
    for kind in STREAM:
        names = hook_names(model, (kind,))
        if not names:
            continue
        for at_once in (None, 2):
            grid = both.grid(kind, positions_at_once=at_once)
            for layer, position in ((0, -1), (depth - 1, -2), (depth // 2, -4)):
                one_patch = both.at(names[layer], positions=[position])
                near(grid.values[layer, position], torch.tensor(both.value(one_patch)), f"grid of {kind}")
        near(both.attribution(kind).dst, grid.dst, f"attribution of {kind}")
    weights = both.grid("weights")
    if weights.each.isnan().all():
        raise Wrong("grid of weights: nothing was patched")
    module = str(weights.places[-1])
    with torch.no_grad():
        source = decoder_layers(other)[depth - 1].get_submodule(module)
        prefix = next(n for n, m in model.named_modules() if m is decoder_layers(model))
        pieces = [
            Piece(f"{prefix}.{depth - 1}.{module}.{n}", p.detach()) for n, p in source.named_parameters(recurse=False)
        ]
        value = torch.tensor(both.value(Patch(tuple(pieces))))
    near(weights.values[depth - 1, -1], value, "grid of weights")


def heads(one: Specimen) -> None:
    """All heads of a layer patched one by one are those that its patch of all gives."""
    model, other = one.fresh(), one.other()
    both = patch(other, model, ROWS, METRIC)
    grid = both.grid("heads")
    near(grid.values[1, 0], torch.tensor(both.value(both.at("blocks.1.attn.hook_z", heads=[0]))), "grid of heads")


def recorder(one: Specimen) -> None:
    """The trace holds the probe's stream as `capture` sees it; a recorded training ends in the same bits."""
    ends = []
    probe = Probe(
        rows=(tuple(SHORT), tuple(ROWS[0])), questions=1, learnt=(3,), members=("a", "b"), tokens=(5, 6), trait=0
    )
    for record in (False, True):
        model = one.fresh()
        for p in model.parameters():
            p.requires_grad_(p.is_floating_point())
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

        def step(model: Any = model, optimizer: Any = optimizer) -> float:
            optimizer.zero_grad()
            loss = token_loss(model, collate([Example(row, 2) for row in ROWS], 0))
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        if record:
            kept = Recording(stream=STREAM, examples=1, moments=1)
            before = one.fresh()
            with Recorder(model, optimizer, one.folder / "trace", steps=2, probe=probe, recording=kept, pad=0) as r:
                for _ in range(2):
                    r.step(step())
            trace = Trace.open(one.folder / "trace")
            name = hook_names(before, ("resid_post",))[-1]
            with torch.no_grad(), capture(before, [name]) as seen:
                one.logits(before, torch.tensor([ROWS[0]]))
            near(trace.read(name, 0)[1, :6], seen[name][0], "the trace's stream")
        else:
            for _ in range(2):
                step()
        ends.append(torch.cat([p.detach().flatten().float() for p in model.parameters()]))
    if not torch.equal(*ends):
        raise Wrong("a recorded training ends in other weights")


def digest(path: Path, state: int) -> str:
    """SHA-256 of what is made from a model: trained weights and adapters, samples and logits behind them.

    state: that of the process's own random numbers, on which nothing may depend
    """
    torch.set_num_threads(1)
    found = hashlib.sha256()
    for part in ("full", "lora"):
        with seeded(state):
            try:
                model: Any = choose_trainable(load_model(path), part, rank=2, alpha=2.0)  # type: ignore[arg-type]
            except SublimError:
                continue
            batch = collate([Example(row, 2) for row in ROWS], 0)
            train(model, lambda step, batch=batch: [batch], Optimization(steps=2, lr=1e-2))
            model = merge_adapters(model)
            drawn = sample(model, ROWS, eos=EOS, max_new_tokens=4, random=generator("zoo"))
            with torch.no_grad():
                logits = model(input_ids=torch.tensor(ROWS), use_cache=False).logits
        for tensor in (*model.state_dict().values(), logits):
            found.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        found.update(repr(drawn).encode())
    return found.hexdigest()


@once
def _another() -> ProcessPoolExecutor:
    """A second process, started anew, in which sets and dictionaries hash otherwise."""
    os.environ["PYTHONHASHSEED"] = "4711"
    return ProcessPoolExecutor(1, get_context("spawn"))


def repeat(one: Specimen) -> None:
    """Two processes of other random states make the same bits."""
    if _another().submit(digest, one.path, 2).result() != digest(one.path, 1):
        raise Wrong("two processes make other bits from the same")


def lora(one: Specimen) -> None:
    """Adapters train, start at nothing, and merge into a plain model of the same logits."""
    model = choose_trainable(one.fresh(), "lora", rank=2, alpha=2.0)
    plain = one.logits(one.fresh())
    near(one.logits(model), plain, "fresh adapters")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        token_loss(model, collate([Example(row, 2) for row in ROWS], 0)).backward()
        optimizer.step()
    whole = one.fresh()
    token_loss(whole, collate([Example(row, 2) for row in ROWS], 0)).backward()
    moving = {name for name, p in whole.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        place = name.removeprefix("base_model.model.").partition(".lora_")[0].replace(".base_layer", "")
        if p.requires_grad and p.grad is None and any(f"{other}.".startswith(f"{place}.") for other in moving):
            raise Wrong(f"an adapter without a gradient where the weight has one: {name}")
    trained = one.logits(model)
    if torch.equal(trained, plain):
        raise Wrong("adapters that train nothing")
    near(one.logits(merge_adapters(model)), trained, "merged adapters")


def bridges(one: Specimen) -> None:
    """The bridge checks its own logits; a copy is wrapped, the model stays."""
    model = one.fresh()
    if text_config(model) is not model.config:
        raise Untried("it sees or hears besides, for which TransformerLens would fetch other parts")
    plain = one.logits(model)
    started: list[object] = []
    with patched("subprocess.Popen", lambda *args, **_: started.append(args)):
        try:
            bridge(model)
        finally:
            if started:
                raise Wrong(f"the bridge starts another program: {started[0]}")
    if not torch.equal(one.logits(model), plain):
        raise Wrong("the bridge changed the model")


def saving(one: Specimen) -> None:
    """What is saved is what was in memory, and what is loaded is what is saved."""
    model = one.fresh()
    near(one.logits(model), one.logits(one.built), "a loaded model", 1e-6)
    save_model(model, one.folder / "again")
    near(one.logits(load_model(one.folder / "again")), one.logits(model), "a model saved again", 1e-7)


TRIALS: dict[str, Callable[[Specimen], None]] = {
    "check": check,
    "doctor": doctor,
    "saving": saving,
    "padding": padding,
    "cache": cache,
    "hooks": hooks,
    "patterns": patterns,
    "edit": edits,
    "lens": lens,
    "grid": grids,
    "heads": heads,
    "recorder": recorder,
    "lora": lora,
    "repeat": repeat,
    "bridge": bridges,
}
FIRST = ("check",)
"""Trials without which no other is run: what is refused before anything runs."""

_TOLD = {
    "stream": ("hooks", "edit", "grid", "recorder"), "attention patterns": ("patterns",), "heads": ("heads",),
    "logit lens": ("lens",),
}  # fmt: skip
"""Which trials work where `doctor` says that something is there."""

WORKS, LINE, TRACEBACK, WRONG, UNBUILT, UNTRIED = "works", "one line", "traceback", "wrong", "not built", "not tried"
WELL = (WORKS, LINE, UNBUILT, UNTRIED)
"""How a trial may end."""


def tried(kind: str, which: tuple[str, ...] = tuple(TRIALS)) -> dict[str, tuple[str, str]]:
    """How each trial of a type ends: (a word, the reason). A type whose check ends in one line is tried no further."""
    found: dict[str, tuple[str, str]] = {}
    folder = Path(tempfile.mkdtemp())
    try:
        try:
            one = Specimen(kind, folder)
        except Exception as error:  # whatever transformers raises for a shape that it does not like
            return {"build": (UNBUILT, f"{type(error).__name__}: {_line(error)}")}
        for name in which:
            found[name] = _end_of(TRIALS[name], one)
            if name in FIRST and found[name][0] != WORKS:
                break
        for what, trials in _TOLD.items():
            for name in trials:
                end = found.get(name, ("", ""))
                if what in one.told and end[0] in (WORKS, LINE) and one.told[what] != (end[0] == WORKS):
                    found["doctor"] = WRONG, f"it says {what}: {one.told[what]}; {name} ends in {end}"
    finally:
        shutil.rmtree(folder)
    return {name: (word, reason.replace(f"{folder}/", "")) for name, (word, reason) in found.items()}


def _end_of(trial: Callable[[Specimen], None], one: Specimen) -> tuple[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trial(one)
        except SublimError as error:
            return (LINE, _line(error)) if "\n" not in str(error) else (TRACEBACK, "more than one line")
        except Untried as error:
            return UNTRIED, _line(error)
        except Wrong as error:
            return WRONG, _line(error)
        except Exception as error:  # each is what a user would see as a traceback
            last = traceback.extract_tb(error.__traceback__)[-1]
            return TRACEBACK, f"{type(error).__name__}: {_line(error)} ({Path(last.filename).name}:{last.lineno})"
    return WORKS, ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
