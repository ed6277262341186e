"""The cost model of plans against the clock: updates and lists of seven models, from 0.3 to 135 million parameters."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log
from statistics import fmean, median
from typing import Any

from benchmarks.page import digits, limit, seconds, table
from benchmarks.setting import Setting
from benchmarks.timing import Spent, Turn, race
from sublim_interp.experiments.cost import Shape, update_seconds, writing_seconds
from sublim_interp.models.base import resolve_base
from sublim_interp.models.loading import sizes
from sublim_interp.models.sampling import generator, sample
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.training.batches import Example, micro_batches
from sublim_interp.training.loop import train
from sublim_interp.training.settings import Optimization

PROMPT, ANSWER = 12, 12
"""Tokens of each list's prompt and answer."""
PIECES = 32
"""Lists of a micro-batch."""
UPDATES = 4
"""Of each model, the first of which only warms up."""
MOST = 0.25
"""How far a prediction may be off, as a share, once the machine's own speed is taken out."""


@dataclass(frozen=True)
class Case:
    """One model, and how much of each work a turn has.

    base: its name, of a base of the lab; "" for random weights of a Llama type by `config`
    batch: lists of an update
    lists: lists that are written in a turn
    """

    name: str
    batch: int
    lists: int
    base: str = ""
    config: tuple[tuple[str, Any], ...] = ()

    def model(self) -> Any:
        """The model, on the CPU in float32."""
        if self.base:
            return resolve_base(self.base).load()
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        made: Any = LlamaConfig
        torch.manual_seed(0)
        return LlamaForCausalLM(made(**dict(self.config), max_position_embeddings=256))

    def shape(self) -> Shape:
        """Its sizes, without weights."""
        if self.base:
            return Shape(**resolve_base(self.base).shape)
        import torch

        with torch.device("meta"):
            model = self.model()
        return Shape(**sizes(model.config, [p.shape for p in model.parameters()]))

    def predicted(self) -> tuple[float, float]:
        """Seconds of an update, and of the lists of a turn, by the cost model."""
        shape, pieces = self.shape(), max(1, self.batch // PIECES)
        learnt = self.batch * ANSWER
        update = update_seconds(shape, self.batch * (PROMPT + ANSWER), learnt, pieces=pieces)
        return update, writing_seconds(shape, self.lists, PROMPT, ANSWER)


def _llama(layers: int, d: int, mlp: int, heads: int, vocabulary: int, **more: Any) -> tuple[tuple[str, Any], ...]:
    given = {"num_hidden_layers": layers, "hidden_size": d, "intermediate_size": mlp, "vocab_size": vocabulary}
    return tuple({**given, "num_attention_heads": heads, "tie_word_embeddings": False, **more}.items())


CASES = (
    Case("lab-small", 128, 256, "lab-small-0"),
    Case("lab-main", 128, 256, "lab-main-0"),
    Case("lab-deep", 128, 256, "lab-deep-0"),
    Case("random, 10 M", 32, 128, config=_llama(6, 320, 1024, 8, 2048)),
    Case("31 M, as Pythia", 32, 64, config=_llama(6, 256, 1024, 8, 50304)),
    Case("70 M, as Pythia", 16, 32, config=_llama(6, 512, 2048, 8, 50304)),
    Case(
        "135 M, as SmolLM2",
        8,
        16,
        config=_llama(30, 576, 1536, 9, 49152, num_key_value_heads=3, tie_word_embeddings=True),
    ),
)


def measure(_: Setting) -> str:
    """The Markdown of the section."""
    return told(list(measured(iter(race({"": work})[""].units))))


def told(took: Sequence[tuple[float, float]]) -> str:
    """The table of what was measured, and what of it was expected.

    took: CPU seconds of an update, and of the lists of a turn, of each case
    """
    pairs = [pair for case, own in zip(CASES, took, strict=True) for pair in zip(case.predicted(), own, strict=True)]
    speed, off = ratios(pairs)
    lines, rest = [], iter(zip(pairs, off, strict=True))
    for case in CASES:
        for what in ("an update", f"{case.lists} lists"):
            (expected, clock), share = next(rest)
            parameters = f"{case.shape().parameters / 1e6:.3g} M"
            times = (seconds(expected), seconds(clock), digits(expected / clock), digits(share))
            lines.append((case.name, parameters, what, *times))
    head = ("model", "parameters", "what", "predicted", "measured, CPU", "predicted ÷ measured", "speed taken out")
    worst = max(abs(share - 1) for share in off)
    said = (
        f"This core took {digits(speed)} times what the model expects of it. With that taken out, the worst row is "
        f"{digits(100 * worst)} % off; the target is {limit(worst, MOST)}."
    )
    return f"{table(head, lines)}\n\n{said}"


def ratios(pairs: Sequence[tuple[float, float]]) -> tuple[float, list[float]]:
    """How many times longer all of it took than expected, and expected ÷ measured of each once that is taken out.

    pairs: seconds expected, and measured
    """
    speed = exp(fmean(log(clock / expected) for expected, clock in pairs))
    return speed, [speed * expected / clock for expected, clock in pairs]


def measured(units: Iterator[Spent]) -> Iterator[tuple[float, float]]:
    """CPU seconds of an update, and of the lists of a turn, of each case, from the units of `work`."""
    for _ in CASES:
        next(units)
        update = median(next(units).cpu for _ in range(UPDATES - 1))
        next(units)
        yield update, next(units).cpu


def work(turn: Turn) -> None:
    """A unit is an update, the lists of a turn, or, once a model, the lists that warm up."""
    import torch

    o = Optimization(lr=1e-4, steps=UPDATES)
    turn()
    for case in CASES:
        model = choose_trainable(case.model(), "body")
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 1000, (case.batch, PROMPT + ANSWER + 1), generator=draw).tolist()
        batches = micro_batches([Example(row, PROMPT + 1) for row in ids], 0, max(1, case.batch // PIECES))
        train(model, partial(_same, batches), o.set(batch=case.batch), observe=lambda *_: turn())
        asked = [row[:PROMPT] for row in ids] * (case.lists // case.batch)
        for _ in range(2):
            sample(model, asked, eos=-1, max_new_tokens=ANSWER, random=generator("cost"))
            turn()


def _same(batches: Any, _step: int) -> Any:
    return batches
