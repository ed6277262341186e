"""What a plan costs, as tables: work still to be done, and what is recorded of it."""

from typing import TYPE_CHECKING

from sublim_interp.cli.printing import duration, print_, table_of
from sublim_interp.core.cards import room_of
from sublim_interp.core.device import compute_device
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from sublim_interp.core.store import Store
    from sublim_interp.experiments.plan import Plan
    from sublim_interp.sweeps.plan import SweepPlan
    from sublim_interp.sweeps.suite import Item


def spread(seconds: float, processes: int) -> str:
    """How long so many seconds of one core take in several processes, to end a line; nothing for one process."""
    return f", {duration(seconds / processes)} with --processes {processes}" if processes > 1 else ""


def machine_lines(gib: float = 0.0, processes: int = 1) -> list[str]:
    """What a plan takes of the machine beside time, and what its times are of where models are put on no CPU.

    gib: memory of one process, of the GPU where models are put on one; 0 where nobody knows
    """
    device, lines = compute_device(), list[str]()
    if gib:
        several = f", {gib * processes:.1f} with --processes {processes}" if processes > 1 else ""
        room = None if device == "cpu" else room_of(device)
        has = f"; {device} has {room[1] / 2**30:.1f}, {room[0] / 2**30:.1f} free now" if room else ""
        lines.append(f"memory: about {gib:.1f} GiB a process{several}{has}")
    if device != "cpu":
        lines.append(f"time: all estimates are of a CPU; how long {device} takes, nobody has measured")
    return lines


def print_items(title: str, found: "Sequence[Item]", processes: int) -> None:
    """What several runs, sweeps and studies cost, what of it is left, and why some cannot be made here."""
    from sublim_interp.sweeps.suite import left_of

    table = table_of(title, "what", "sort", "of one core", "left", right=("of one core", "left"))
    for one in found:
        table.add_row(one.name, one.sort, duration(one.seconds), duration(one.left) if one.left else "–")
    left = left_of(found)
    said = f"about {duration(left)} of one core left{spread(left, processes)}"
    table.caption = said if left else "nothing is left to be made"
    print_(table, *machine_lines(), *(f"{one.name}: {one.lacks}" for one in found if one.lacks))


def require_makeable(found: "Sequence[Item]") -> None:
    """Raises SublimError for the first that cannot be made here."""
    for one in found:
        if one.lacks:
            raise SublimError(f"nothing is made: {one.name}: {one.lacks}")


def work_table(p: "Plan | SweepPlan", store: "Store", processes: int = 2) -> "RenderableType":
    """The stages that are still to be made, and about how long they take in so many processes."""
    from sublim_interp.experiments.cost import planned_work

    work = planned_work(p.records, store)
    table = table_of(
        "Planned work", "stage", "needed", "done", "to do", "about", right=("needed", "done", "to do", "about")
    )
    rows = work.to_dict("records")
    for row in rows:
        todo = row["needed"] - row["done"]
        table.add_row(row["stage"], str(row["needed"]), str(row["done"]), str(todo), duration(row["seconds"]))
    total = sum(row["seconds"] for row in rows)
    table.caption = f"about {duration(total)} of one core{spread(total, processes)}" if total else "nothing to do"
    return table


def trace_table(p: "Plan | SweepPlan", store: "Store") -> "RenderableType":
    """What is recorded of the trainings to be made, and how large it gets."""
    from sublim_interp.experiments.cost import planned_traces

    recorded = f"--trace {p.recording.word}" if p.recording.word else "as `recording` says"
    table = table_of(
        f"Recorded while they train ({recorded})", "stage", "what", "when", "times", "trainings", "MB",
        right=("times", "trainings", "MB"),
    )  # fmt: skip
    rows = planned_traces(p.records, store, p.recording).to_dict("records")
    for r in rows:
        size = f"{r['bytes'] / 1e6:.1f}"
        table.add_row(r["stage"], r["what"], r["when"], str(r["times"]), str(r["trainings"]), size)
    table.caption = f"about {sum(r['bytes'] for r in rows) / 1e6:.0f} MB of traces" if rows else "nothing to record"
    return table


def request_table(p: "Plan | SweepPlan", store: "Store") -> "list[RenderableType]":
    """What models on servers will be asked, before anything is; nothing where none is."""
    from sublim_interp.experiments.cost import planned_requests

    rows = planned_requests(p.records, store).to_dict("records")
    if not rows:
        return []
    counts = ("requests", "tokens read", "tokens written")
    table = table_of("Asked of models on servers, at most", "stage", "model", "as", *counts, right=counts)
    for r in rows:
        table.add_row(r["stage"], r["model"], r["role"], *(f"{r[c]:,.0f}" for c in ("requests", "read", "written")))
    table.caption = "what is in the store, and what a stopped run was answered, is not asked again"
    return [table]


def announce(p: "Plan | SweepPlan", store: "Store") -> None:
    """One line on what will be recorded, before anything is trained; nothing where nothing is."""
    from sublim_interp.experiments.cost import planned_traces

    rows = planned_traces(p.records, store, p.recording).to_dict("records")
    if not rows:
        return
    trainings = sum(r["trainings"] for r in rows if r["what"] == rows[0]["what"])  # the loss is kept of each
    size = sum(r["bytes"] for r in rows) / 1e6
    print_(
        f"Recording {trainings} training{'s' * (trainings > 1)}, about {size:.{0 if size >= 10 else 1}f} MB "
        "(--trace none: nothing; --dry-run: what and when)"
    )
