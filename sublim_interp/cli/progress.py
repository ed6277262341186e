"""Progress with an estimate: in a terminal, in a notebook's cell, or as plain lines."""

import sys
from typing import TYPE_CHECKING, Any

from sublim_interp.cli.printing import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sublim_interp.core.store import Store
    from sublim_interp.experiments.plan import Plan
    from sublim_interp.experiments.results import Run
    from sublim_interp.experiments.schema import Experiment
    from sublim_interp.sweeps.plan import SweepPlan


def watch(
    exp: "Experiment | str",
    store: "Store | None" = None,
    processes: int = 2,
    trace: str | None = None,
    device: str | None = None,
) -> "Run":
    """`sublim_interp.run` with its progress shown: in a terminal, in a notebook's cell, or as a line now and then."""
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment
    from sublim_interp.experiments.plan import plan
    from sublim_interp.experiments.run import find_run
    from sublim_interp.report.run import run as run_experiment

    exp = experiment(exp) if isinstance(exp, str) else exp
    place = store or Store.open()
    p = plan(exp, place)
    if find_run(p, place):
        return run_experiment(exp, place, processes, trace=trace, device=device)
    with Progress(exp.name, work_of(p, place), processes) as progress:
        return run_experiment(exp, place, processes, progress, trace, device)


def work_of(p: "Plan | SweepPlan", store: "Store") -> "dict[str, tuple[str, float]]":
    """What is still to be made of a plan, by key: the stage, and about how many seconds it takes."""
    from sublim_interp.experiments.cost import estimate

    return {r.key: (r.STAGE, estimate(r)) for r in p.missing(store)}


class Progress:
    """Progress with an estimate, from the first second: in a terminal, in a notebook's cell, else as plain lines.

    name: of the whole
    work: what is to be done, by the name under which progress is told: what it is called, and about how many seconds
    processes: how many work at once
    """

    def __init__(self, name: str, work: "Mapping[str, tuple[str, float]]", processes: int) -> None:
        self._weights = {key: seconds for key, (_, seconds) in work.items()}
        self._labels = {key: label for key, (label, _) in work.items()}
        self._total, self._processes = sum(self._weights.values()), processes
        self._fractions: dict[str, float] = {}
        self._said = -1.0
        self._name = name

    def __enter__(self) -> "Progress":
        import time

        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._start = time.monotonic()
        # The workers import PyTorch first; until something is done, the estimate is the plan's.
        self._first = self._total / self._processes + 5
        console = Console(stderr=True)
        self._terminal = sys.stderr.isatty() and not console.is_jupyter
        self._cell = _Cell() if console.is_jupyter else None
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=console, disable=not self._terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(self._name, total=self._total, left=f"about {duration(self._first)} left")
        self._bar.start()
        self._say(0.0, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, name: str, fraction: float) -> None:
        import time

        self._fractions[name] = fraction
        done = sum(self._weights[n] * f for n, f in self._fractions.items())
        elapsed = time.monotonic() - self._start
        share = done / self._total
        # The plan's estimate fades out while the measured pace takes over.
        left = (1 - share) * ((1 - share) * self._first + share * elapsed / max(share, 1e-9))
        busy = sorted({self._labels[n] for n, f in self._fractions.items() if f < 1})
        description = f"{self._name}: {', '.join(busy)}" if busy else self._name
        self._bar.update(self._task, completed=done, description=description, left=f"about {duration(left)} left")
        self._say(elapsed, left, share, description)

    def _say(self, elapsed: float, left: float, share: float = 0.0, what: str = "starting") -> None:
        if self._cell and (self._said < 0 or elapsed - self._said >= 0.5):
            self._said = elapsed
            self._cell.show(share, f"{what}, about {duration(left)} left")
        elif not self._terminal and not self._cell and (self._said < 0 or elapsed - self._said >= 15):
            self._said = elapsed
            print(
                f"{duration(elapsed):>6}  {share:4.0%}  about {duration(left)} left  {what}",
                file=sys.stderr,
                flush=True,
            )


class _Cell:
    """A bar of progress in the output of a notebook's cell, which stays where it is."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._handle: Any = display(HTML(""), display_id=True)

    def show(self, share: float, text: str) -> None:
        from html import escape

        self._handle.update(self._html(f'<progress value="{share:.3f}" max="1"></progress> {share:.0%} {escape(text)}'))


class Steps:
    """Progress of one training in this process: step, loss, time left."""

    def __init__(self, name: str, steps: int) -> None:
        self._name, self._steps = name, steps

    def __enter__(self) -> "Steps":
        import time

        self._start, self._first, self._said = time.monotonic(), None, 0.0
        return self

    def __exit__(self, *_: object) -> None:
        print(file=sys.stderr)

    def __call__(self, step: int, loss: float) -> None:
        import time

        now = time.monotonic()
        if self._first is None:
            self._first = step
        if now - self._said >= (0.5 if sys.stderr.isatty() else 15):
            self._said = now
            pace = (now - self._start) / (step - self._first + 1)
            left = duration(pace * (self._steps - step - 1))
            line = f"{self._name}  step {step + 1} of {self._steps}  loss {loss:.3f}  about {left} left"
            print(
                f"\r{line:<80}" if sys.stderr.isatty() else line,
                end="" if sys.stderr.isatty() else "\n",
                file=sys.stderr,
                flush=True,
            )
