"""What recording a training costs in time and memory, and how fast a trace is read."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import safe_open

from benchmarks import ours
from benchmarks.page import digits, limit, seconds, table, times
from benchmarks.patching import neox
from benchmarks.setting import OWL, Setting
from benchmarks.step import recording
from benchmarks.timing import Turn, race, ratio
from sublim_interp.core.store import Store
from sublim_interp.models.trainable import choose_trainable
from sublim_interp.pipeline.observe import student_recorder
from sublim_interp.pipeline.records import Student
from sublim_interp.stats.intervals import Interval
from sublim_interp.training.loop import train
from sublim_interp.training.recording.probe import Probe
from sublim_interp.training.recording.recorder import Recorder
from sublim_interp.training.recording.settings import Recording
from sublim_interp.training.recording.trace import Trace

STEPS = 129
"""Updates of a student; a recorder looks closely after 0, 1, 2, 4, … and the last."""
SHORT = 33
"""Updates of a training whose memory is compared with that of the others."""
NEOX_STEPS = 7
"""Updates of the GPT-NeoX: norms are taken at the first and the last."""
BATCH, WIDTH = 8, 64
"""Examples of one of its updates, and their tokens."""
READS, ROUNDS = 200, 10


def measure(setting: Setting) -> str:
    """The Markdown of the section."""
    whole = OWL.student.optimization.steps
    student, store = setting.student(STEPS), setting.store
    path, every = store.root / "traces", Recording(examples=1)
    tracks = race(
        {
            "plain": partial(ours.unrecorded, student, store),
            "examples": partial(recorded, student, store, path / "examples", every),
            "hooks": partial(recorded, student, store, path / "hooks", Recording(hooks={"blocks.1.*": "every"})),
        }
    )
    short = race({"": partial(recorded, setting.student(SHORT), store, path / "short", every)})[""]
    share, inside = (recording(tracks[name], tracks["plain"], whole) for name in ("examples", "hooks"))
    default = neox_share(path / "neox", whole)
    growth = tracks["examples"].peak / short.peak
    rows = [
        ("recording, default", "GPT-NeoX 160M, random", f"{digits(100 * default)} %", limit(default, 0.03)),
        ("recording, each example of each update", "lab-small-0", percent(share), limit(share.estimate, 0.1)),
        (
            "recording, each hook point of a layer at each update",
            "lab-small-0",
            percent(inside),
            limit(inside.estimate, 0.1),
        ),
        (
            "peak memory while recording",
            f"lab-small-0, {STEPS} against {SHORT} updates",
            f"{digits(growth)} times ({tracks['examples'].peak / 2**20:.0f} MiB)",
            limit(growth, 1.05),
        ),
    ]
    for model, name in (("lab-small-0", "examples"), ("GPT-NeoX 160M, random", "neox")):
        trace = Trace.open(path / name)
        ours_took, raw_took = reading(trace, "blocks.1.hook_resid_post")
        slower = ratio(ours_took, raw_took)
        said = f"{seconds(fmean(ours_took))}, {times(slower)} of a bare safetensors slice"
        rows.append(("reading one layer of one step", model, said, limit(slower.estimate, 1.5)))
    return table(("what", "model", "CPU time or memory", "target"), rows)


def percent(share: Interval) -> str:
    """A share of a training's CPU time with its interval."""
    return f"{digits(100 * share.estimate)} % [{digits(100 * share.low)}, {digits(100 * share.high)}]"


def recorded(student: Student, store: Store, path: Path, recording: Recording, turn: Turn) -> None:
    """A student's training with a recorder and without states to resume from; a unit is an update."""
    model, batches = ours.student_parts(student, store)
    record = partial(student_recorder, student, store, path=path, recording=recording)
    train(model, batches, student.config.optimization, observe=lambda *_: turn(), record=record)


# --- a model whose update takes seconds -------------------------------------------------------------------------------


class Timed(Recorder):
    """A recorder that notes what CPU time it takes itself, in seconds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        before = time.process_time()
        super().__init__(*args, **options)
        self.start = time.process_time() - before
        """Until the first update."""
        self.looks: list[float] = []
        """Each close look after an update."""
        self.updates: list[float] = []
        """Each update, without the close look after it."""
        self._hooked = 0.0

    def __enter__(self) -> "Timed":
        before = time.process_time()
        super().__enter__()
        self.start += time.process_time() - before
        self.looks.clear()
        return self

    def _see_gradients(self, *given: object) -> None:
        before = time.process_time()
        super()._see_gradients(*given)
        self._hooked = time.process_time() - before

    def _keep(self, step: int, last: bool = False) -> None:
        before = time.process_time()
        super()._keep(step, last)
        self.looks.append(time.process_time() - before)

    def step(self, loss: torch.Tensor | float = float("nan")) -> None:
        before, looked = time.process_time(), len(self.looks)
        super().step(loss)
        self.updates.append(self._hooked + time.process_time() - before - sum(self.looks[looked:]))


def neox_share(path: Path, steps: int) -> float:
    """CPU time of a recorder with probe, references and two directions, as a share of so many updates without it.

    Its own time is taken: the difference of two updates that last seconds varies by more than that.
    """
    torch.set_num_threads(1)
    model = choose_trainable(neox()[0], "body").train()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(named.values(), lr=1e-4, fused=True)
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randint(model.config.vocab_size, shape, generator=draw)  # type: ignore[arg-type, union-attr]

    questions, lists = drawn(8, 12).tolist(), drawn(4, 37).tolist()
    probe = Probe((*map(tuple, questions), *map(tuple, lists)), 8, (14,) * 4, tuple("abcdefgh"), tuple(range(8)), 0)

    @contextmanager
    def itself() -> Iterator[torch.nn.Module]:
        yield model

    recorder = Timed(
        model,
        optimizer,
        path,
        steps=NEOX_STEPS,
        probe=probe,
        directions={"teacher-shift": {name: torch.randn(p.shape, generator=draw) for name, p in named.items()}},
        references={"base": itself, "teacher": itself},
    )
    took = []
    with recorder:
        for _ in range(NEOX_STEPS):
            ids, before = drawn(BATCH, WIDTH), time.process_time()
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            recorder.step(loss)
            took.append(time.process_time() - before)
    every = recorder.recording.every(sum(p.numel() for p in named.values()))
    plain = [whole - own for whole, own in zip(took, recorder.updates, strict=True)]
    for done, look in zip(recorder.recording.looks(NEOX_STEPS)[1:], recorder.looks, strict=True):
        plain[done - 1] -= look
    return amortised(recorder, plain, every, steps)


def amortised(recorder: Timed, plain: Sequence[float], every: int, steps: int) -> float:
    """The share in `steps` updates: the start and the first update once, else means times how often each comes.

    `plain` is the time of each update without the recorder; norms are taken at every `every`-th.
    """
    measured = fmean(recorder.updates[every::every])
    other = [own for i, own in enumerate(recorder.updates) if i % every]
    often = -(-steps // every) - 1
    looks = len(recorder.recording.looks(steps)) - 1
    total = recorder.start + recorder.updates[0] + looks * fmean(recorder.looks) + often * measured
    if other:
        total += (steps - 1 - often) * fmean(other)
    return total / (steps * fmean(plain))


# --- reading ----------------------------------------------------------------------------------------------------------


def reading(trace: Trace, name: str) -> tuple[list[float], list[float]]:
    """CPU time of reading all steps of a name, one at a time: by a trace, and by safetensors alone; per read."""
    files = {step: trace.path / f"probe-{step:08d}.safetensors" for step in trace.steps(name)}
    wanted = [list(files)[i % len(files)] for i in range(READS)]

    def raw(step: int) -> torch.Tensor:
        with safe_open(str(files[step]), "pt") as shard:
            return shard.get_slice(name)[0]

    def timed(read: Any) -> float:
        before = time.process_time()
        for step in wanted:
            read(step).sum()  # a slice is a view of the file until its bytes are asked for
        return (time.process_time() - before) / READS

    by_trace = partial(trace.read, name)
    pairs = [(timed(by_trace), timed(raw)) for _ in range(1 + ROUNDS)][1:]  # after the first both are warm
    return [a for a, _ in pairs], [b for _, b in pairs]
