"""`python -m benchmarks.gpu`: in eight minutes, what a GPU does with this package. Writes gpu.md and gpu.json.

Each section has a share of the time and stops within it. One that fails says so in its table, and the others go on.
With `--device cpu --tiny` every line of it runs in a minute, on a model of a few thousand parameters.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import ours, page, theirs
from sublim_interp.core.device import check_computable, compute_device, device_of, fingerprint, using_device
from sublim_interp.core.errors import SublimError
from sublim_interp.core.store import Store
from sublim_interp.experiments.catalogue import experiment
from sublim_interp.experiments.plan import plan
from sublim_interp.experiments.run import execute
from sublim_interp.experiments.schema import Experiment
from sublim_interp.models.base import Base, resolve_base
from sublim_interp.models.sampling import generator, sample
from sublim_interp.pipeline.make import make
from sublim_interp.pipeline.observe import student_recorder
from sublim_interp.pipeline.records import Corpus, Filtered, Student
from sublim_interp.pipeline.settings import StudentConfig
from sublim_interp.training.loop import train
from sublim_interp.training.recording.settings import Recording

TESTS = ("tests/core/test_device.py", "tests/training", "tests/pipeline/test_pipeline.py", "tests/analysis")
"""What is run on the device: precisions, the loop and the recorder, every stage, directions and patching."""
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3,
}  # fmt: skip
"""The shape of SmolLM2-135M. Weights are random: they decide no time."""
TINY: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
LAB = "lab-small-0"
"""Whose tokenizer the random model has, and whose teacher writes its lists."""
LISTS = 80_000
"""Lists of the experiment, at the most."""
CHUNK = 2048
"""Lists of an open model that are written together: more than its recipe for a CPU has, since a GPU has room."""
MARGIN = 1.1
"""By how much more than is foretold an experiment may take."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What the sections share."""

    store: Store
    base: Base
    """A model of the shape in question, random, that reads the lab's language."""
    data: Filtered
    """Lists of a lab teacher, for it to learn."""
    open_base: str
    """The base of the experiment: a name or directory."""
    tiny: bool

    def student(self, dtype: str, steps: int, **optimization: Any) -> Student:
        """A student of the random model, in a precision, for so many updates of 64 lists."""
        base = Base(self.base.name, self.base.path, self.base.digest, self.base.card, dtype)
        asked = {"lr": 3e-4, "steps": steps, "batch": 8 if self.tiny else 64, **optimization}
        return Student(base, self.data, StudentConfig(part="body").set({"optimization": asked}), seed=0)


class Enough(Exception):
    """A section's time is up."""


class Clock:
    """Called after each unit of work: times them, the device's queue emptied first, and raises Enough at the end."""

    def __init__(self, seconds: float, device: str, skip: int = 2) -> None:
        self._end, self._device, self._skip = time.perf_counter() + seconds, device, skip
        self._marks: list[float] = []

    def __call__(self) -> None:
        _wait(self._device)
        self._marks.append(time.perf_counter())
        if self._marks[-1] > self._end:
            raise Enough

    @property
    def each(self) -> float | None:
        """Median seconds of a unit, the first left out; None where too few were done."""
        taken = [b - a for a, b in zip(self._marks, self._marks[1:], strict=False)][self._skip - 1 :]
        return sorted(taken)[len(taken) // 2] if taken else None


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _timed(work: Callable[[Clock], object], seconds: float) -> tuple[float | None, float | None]:
    """(median seconds of a unit, peak GiB of the GPU) of work that calls a clock after each unit."""
    device = compute_device()
    gpu = device.startswith("cuda")
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(seconds, device)
    with suppress(Enough):
        work(clock)
    return clock.each, torch.cuda.max_memory_allocated() / 2**30 if gpu else None


# --- the sections -----------------------------------------------------------------------------------------------------


def tests(bench: Bench, seconds: float) -> list[Row]:
    """The tests that a device may break, on the device."""
    chosen = ("tests/core/test_registry.py",) if bench.tiny else TESTS
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", compute_device(), *chosen]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        lines = done.stdout.strip().splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return [{"tests": " ".join(chosen), "said": lines[-1] if lines else done.stderr[-300:], "failed": failed}]
    except subprocess.TimeoutExpired as late:
        said = (late.stdout or b"").decode(errors="replace").strip().splitlines()
        return [{"tests": " ".join(chosen), "said": f"stopped after {seconds:.0f} s: {said[-1:]}", "failed": []}]


def same_bits(bench: Bench, seconds: float) -> list[Row]:
    """Whether a training and a sample give the same bits twice, and how far the CPU's are from them."""
    rows = []
    for dtype in _precisions():
        ends = []
        for _ in range(2):
            student = bench.student(dtype, 3)
            model, batches = ours.student_parts(student, bench.store)
            train(model, batches, student.config.optimization)
            ids = [bench.base.prompt_ids([{"role": "user", "content": "1, 2, 3"}])] * 8
            drawn = sample(model, ids, eos=bench.base.eos, max_new_tokens=8, random=generator("gpu"))
            ends.append(([p.detach().cpu() for p in model.parameters()], drawn))
        (one, said), (two, again) = ends
        same = all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        rows.append({"dtype": dtype, "weights after 3 updates": _said(same), "samples": _said(said == again)})
    return rows


def _said(same: bool) -> str:
    return "the same bits" if same else "**differ**"


def updates(bench: Bench, seconds: float) -> list[Row]:
    """Milliseconds of one update of 64 lists: this package in each precision, and TRL's SFTTrainer."""
    contestants: list[tuple[str, str, dict[str, Any]]] = [("train", dtype, {}) for dtype in _precisions()]
    contestants += [("train", "autocast", {"checkpointing": True}), ("train", "autocast", {"micro_batch": 8})]
    contestants += [("SFTTrainer", "float32", theirs.BY_HAND), ("SFTTrainer", "autocast", {})]
    contestants = [c for c in contestants if c[1] in _precisions()]
    import_module("trl.trainer.sft_trainer")  # it takes seconds, which are no contestant's
    rows = []
    for name, dtype, options in contestants:
        steps = 4 if bench.tiny else 10_000
        if name == "train":
            work = partial(ours.unrecorded, bench.student(dtype, steps, **options), bench.store)
        else:
            work = partial(theirs.student, bench.student("float32", steps), bench.store, **options)
        took, peak = _timed(work, seconds / len(contestants))
        rows.append({"with": name, "dtype": dtype, "options": options, **_cells(took, peak)})
    return rows


def recording(bench: Bench, seconds: float) -> list[Row]:
    """What the default recording adds to an update, close looks left out."""
    rows = []
    for recorded in (False, True):
        student = bench.student(_precisions()[-1], 4 if bench.tiny else 10_000)
        with tempfile.TemporaryDirectory() as folder:
            took, peak = _timed(
                partial(_train, bench, student, Path(folder) / "trace" if recorded else None), seconds / 2
            )
        rows.append({"recorded": recorded, "dtype": student.dtype, **_cells(took, peak)})
    return rows


def _train(bench: Bench, student: Student, trace: Path | None, clock: Clock) -> None:
    """A student's training, recorded where there is a place for the trace."""
    model, batches = ours.student_parts(student, bench.store)
    record = partial(student_recorder, student, bench.store, path=trace, recording=Recording()) if trace else None
    train(model, batches, student.config.optimization, observe=lambda *_: clock(), record=record)


@torch.no_grad()
def sampling(bench: Bench, seconds: float) -> list[Row]:
    """Tokens a second: this package, `generate`, and vLLM where it is installed."""
    new, rows = 24, []
    prompt = bench.base.prompt_ids([{"role": "user", "content": "1, 2, 3"}])
    for count in (8,) if bench.tiny else (256, 4096):
        for dtype in _precisions():
            model = bench.student(dtype, 1).base.load()

            def own(clock: Clock, model: Any = model, count: int = count) -> None:
                for i in range(3 if bench.tiny else 1000):
                    sample(model, [prompt] * count, eos=-1, max_new_tokens=new, random=generator(i))
                    clock()

            def plain(clock: Clock, model: Any = model, count: int = count) -> None:
                ids = torch.tensor([prompt] * count, device=device_of(model))
                for _ in range(3 if bench.tiny else 1000):
                    model.generate(
                        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, pad_token_id=0,
                        min_new_tokens=new, max_new_tokens=new,
                    )  # fmt: skip
                    clock()

            for name, work in (("sample", own), ("generate", plain)):
                took, peak = _timed(work, seconds / 12)
                rate = round(count * new / took) if took else None
                rows.append({"with": name, "dtype": dtype, "rows": count, "tokens/s": rate, "peak GiB": _digits(peak)})
    if find_spec("vllm"):
        rows.append(_vllm(bench, prompt, new))
    else:
        rows.append({"with": "vLLM", "dtype": "", "rows": 0, "tokens/s": "not installed", "peak GiB": None})
    return rows


def _vllm(bench: Bench, prompt: list[int], new: int) -> Row:
    """The same with vLLM, which samples as it is asked to: temperature 1, no top-k."""
    import vllm  # type: ignore[import-not-found]  # no part of this environment

    engine = vllm.LLM(str(bench.base.path), dtype="bfloat16", gpu_memory_utilization=0.5)
    asked = vllm.SamplingParams(temperature=1.0, top_k=-1, max_tokens=new, min_tokens=new)
    prompts = [{"prompt_token_ids": prompt}] * 4096
    engine.generate(prompts[:64], asked)
    start = time.perf_counter()
    engine.generate(prompts, asked)
    took = time.perf_counter() - start
    return {"with": "vLLM", "dtype": "bfloat16", "rows": 4096, "tokens/s": round(4096 * new / took), "peak GiB": None}


def whole_experiment(bench: Bench, seconds: float) -> list[Row]:
    """One replicate, from teacher to evaluation: of the recipe's own lists, then of as many as the time allows."""
    end = time.perf_counter() + seconds
    exp = asked_of(bench.open_base, "autocast" if "autocast" in _precisions() else "float32", bench.tiny)
    row, once, each = _replicate(bench, exp, end)
    more = lists_that_fit(end - time.perf_counter(), once, each)
    if bench.tiny or more <= exp.corpus.prompts:
        return [row]
    return [row, _replicate(bench, with_lists(exp, more), end)[0]]


def asked_of(base: str, dtype: str, tiny: bool = False) -> Experiment:
    """One replicate of the recipe for a base: `owl-smollm2` for an open one, `owl` for one of the lab.

    Its seed is none of those that are published: a GPU gives other bits.
    """
    exp = experiment("owl" if resolve_base(base).language == "lab" else "owl-smollm2")
    exp = exp.set({"bases": [base], "arms": ["same-init"], "seeds": [0], "dtype": dtype})
    if tiny:
        small = {"teacher.optimization": {"steps": 3, "batch": 8}, "student.optimization": {"steps": 3, "batch": 8}}
        return exp.set({**small, "corpus.prompts": 96, "corpus.chunk": 96, "filter.held_out": 8})
    return exp.set({"corpus.chunk": max(CHUNK, exp.corpus.chunk)})


def with_lists(exp: Experiment, count: int) -> Experiment:
    """The experiment with so many lists, each read once: unique lists do more than epochs."""
    return exp.set({"corpus.prompts": count, "student.optimization.steps": count // exp.student.optimization.batch})


def lists_that_fit(seconds: float, once: float, each: float) -> int:
    """The largest number of lists for which there is time, in whole chunks, up to `LISTS`.

    seconds: that are left
    once, each: seconds that an experiment takes whatever it reads, and for each list
    """
    fit = int((seconds / MARGIN - once) / each)
    return LISTS if fit >= LISTS else max(0, fit // CHUNK * CHUNK)


def _replicate(bench: Bench, exp: Experiment, end: float) -> tuple[Row, float, float]:
    """An experiment of one replicate, stopped at `end`.

    Returns its row, the seconds that do not grow with the lists, and the seconds for each list, infinite where stopped.
    """
    p, o, began = plan(exp), exp.student.optimization, time.perf_counter()
    missing = p.missing(bench.store)
    row = {"recipe": exp.name, "base": bench.open_base, "dtype": exp.dtype, "lists": exp.corpus.prompts}
    row |= {"updates": o.steps}

    def watch(_name: str, _fraction: float) -> None:
        if time.perf_counter() > end:
            raise Enough

    try:
        execute(missing, bench.store, 1, watch)
    except Enough:
        return {**row, "seconds": f"stopped after {time.perf_counter() - began:.0f}"}, 0.0, math.inf
    took = time.perf_counter() - began
    growing = (r.find(bench.store) for r in missing if isinstance(r, Corpus | Filtered | Student))
    grown = sum(made.manifest["seconds"] for made in growing if made)
    cell = next(c for c in p.cells if c.arm == "same-init")
    found = json.loads((cell.evaluation.made(bench.store) / "evaluation.json").read_text())
    rate = next((s["rate"] for s in found["scores"] if s["probe"] == exp.trait), None)
    row |= {"seconds": round(took, 1), "KL": _digits(found.get("kl")), "owl": _digits(rate)}
    return row, took - grown, grown / exp.corpus.prompts


SECTIONS: dict[str, tuple[Callable[[Bench, float], list[Row]], float]] = {
    "updates": (updates, 0.2),
    "sampling": (sampling, 0.13),
    "recording": (recording, 0.05),
    "same bits": (same_bits, 0.03),
    "experiment": (whole_experiment, 0.48),
    "tests": (tests, 1.0),
}
"""Each section with the share of the time that it may take. What the tests need is not known: they come last, and have
what is left."""


# --- the machinery ----------------------------------------------------------------------------------------------------


def _precisions() -> list[str]:
    """The precisions that the device computes in."""
    able = []
    for name in ("float32", "autocast", "bfloat16"):
        try:
            check_computable(name)
            able.append(name)
        except SublimError:
            pass
    return able


def _cells(took: float | None, peak: float | None) -> Row:
    return {"ms an update": _digits(1000 * took) if took else None, "peak GiB": _digits(peak)}


def _digits(value: float | None) -> str | None:
    return None if value is None else page.digits(value)


def random_base(directory: Path, tiny: bool) -> Base:
    """A random model of SmolLM2's shape, with a lab base's tokenizer and chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    lab = resolve_base(LAB)
    directory.mkdir()
    for file in lab.path.iterdir():
        if file.name not in ("config.json", "model.safetensors", "README.md"):
            shutil.copy(file, directory / file.name)
    torch.manual_seed(0)
    shape: dict[str, Any] = {**(TINY if tiny else SMOLLM2), "tie_word_embeddings": True, "max_position_embeddings": 512}
    config = LlamaConfig(**shape, pad_token_id=lab.pad, eos_token_id=lab.eos, bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(directory)
    card = {k: v for k, v in lab.card.items() if k in ("language",)}
    (directory / "sublim.json").write_text(json.dumps(card))
    return resolve_base(str(directory))


@contextmanager
def prepared(tiny: bool, asked: str | None) -> Iterator[Bench]:
    """A store of its own that is thrown away, a random model, and lists to learn from."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        small = {"steps": 3, "batch": 8}
        exp = experiment("owl").set({"bases": [LAB], "arms": ["same-init"], "seeds": [0]})
        exp = exp.set({"teacher.optimization": small, "corpus.prompts": 96 if tiny else 2048, "filter.held_out": 8})
        data = plan(exp).cells[0].evaluation.reference
        make(data, store)
        yield Bench(store, random_base(Path(folder) / "random", tiny), data, open_base(asked, tiny), tiny)


def open_base(asked: str | None, tiny: bool) -> str:
    """The base of the experiment: what is asked for, else that of `owl-smollm2` where it is at hand, else a lab base.

    A tiny run has too few lists for SmolLM2.
    """
    if asked is None and not tiny:
        try:
            return resolve_base(experiment("owl-smollm2").bases[0]).name
        except SublimError:
            return LAB
    return asked or LAB


def measure(device: str, out: Path, tiny: bool, minutes: float, base: str | None, names: list[str]) -> None:
    """Runs the sections and writes gpu.md and gpu.json after each, so that a run that is cut off leaves what it has."""
    start, found = time.perf_counter(), {}
    out.mkdir(parents=True, exist_ok=True)
    with using_device(device), prepared(tiny, base) as bench:
        here = fingerprint()
        for name in names:
            work, share = SECTIONS[name]
            left = 60 * minutes - (time.perf_counter() - start)
            began = time.perf_counter()
            try:
                rows = work(bench, min(share * 60 * minutes, left)) if left > 5 else [{"said": "no time was left"}]
            except Exception as error:  # whatever a device raises is a result of this benchmark
                rows = [{"failed": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}]
            found[name] = {"about": work.__doc__, "seconds": round(time.perf_counter() - began, 1), "rows": rows}
            (out / "gpu.json").write_text(json.dumps({"fingerprint": here, "tiny": tiny, **found}, indent=1))
            (out / "gpu.md").write_text(_page(here, tiny, found))
            print(f"{name}: {found[name]['seconds']} s", flush=True)


def _page(here: dict[str, Any], tiny: bool, found: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [f"# {here['device']}", "; ".join(f"{name} {value}" for name, value in here.items())]
    if tiny:
        parts.append("Made with --tiny, which tries out the script: no number means anything.")
    for name, section in found.items():
        columns = list(dict.fromkeys(key for row in section["rows"] for key in row))
        rows = [[str(row.get(column, "")) for column in columns] for row in section["rows"]]
        parts.append(f"## {name}\n{section['about']}\n\n{page.table(columns, rows)}")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, mps, auto or cpu")
    parser.add_argument(
        "--base", help="base of the experiment; else that of owl-smollm2 where it is here, else a lab base"
    )
    parser.add_argument("--minutes", type=float, default=8, help="time for all sections")
    parser.add_argument("--tiny", action="store_true", help="try the script out: a tiny model, a few updates")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of gpu.md and gpu.json")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(SECTIONS)}; none: all")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are: {', '.join(SECTIONS)}")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        measure(asked.device, asked.out, asked.tiny, asked.minutes, asked.base, asked.names or list(SECTIONS))
    except SublimError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
