"""`sublim status`: what was scheduled of a run: what waits, runs, is done or has failed, with the ends of logs."""

from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import duration, print_, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sublim_interp.core.store import Store
    from sublim_interp.experiments.executors.ledger import Ledger, Standing

_LINES, _SHOWN = 8, 10


def status(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A scheduled experiment or grid, or its key; none: all.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show it anew every few seconds, until all is over.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Show what waits, runs, is done or failed of what `sublim run --on slurm` scheduled; exit code 1 if any failed."""
    from sublim_interp.core.store import Store

    place = Store.open(store)
    if run is None:
        print_(*_all(place))
        return
    if follow:
        _follow(run, place)
    if print_status(run, place):
        raise typer.Exit(1)


def print_status(run: str, store: "Store") -> bool:
    """Prints how a scheduled run stands; returns whether something of it has failed and nothing goes on with it."""
    from sublim_interp.experiments.executors.ledger import find_ledger

    ledger = find_ledger(store, run)
    standings = _standings(ledger, store)
    print_(*_shown(ledger, standings), *_failures(ledger, standings))
    return bool(_failed(standings))


def _standings(ledger: "Ledger", store: "Store") -> "list[Standing]":
    from sublim_interp.experiments.executors.jobs import jobs_of

    return ledger.standings(store, jobs_of(ledger).alive(ledger.open_jobs(store)))


def _failed(standings: "list[Standing]") -> "list[Standing]":
    return [s for s in standings if s.state in ("failed", "lost")]


def _all(store: "Store") -> "list[RenderableType]":
    """A row for each scheduled run."""
    from sublim_interp.experiments.executors.ledger import counts, ledgers

    known = ledgers(store)
    if not known:
        return [f"Nothing is scheduled in {store.root}: `sublim run EXPERIMENT --on slurm` schedules."]
    table = table_of(f"Scheduled in {store.root}", "run", "key", "on", "records")
    for ledger in known:
        said = ", ".join(f"{n} {state}" for state, n in counts(_standings(ledger, store)).items())
        table.add_row(ledger.name, ledger.key[:16], ledger.executor, said)
    return [table]


def _shown(ledger: "Ledger", standings: "list[Standing]") -> "list[RenderableType]":
    """What is in which state, stage by stage, and what runs just now."""
    from sublim_interp.experiments.executors.ledger import counts

    states = list(counts(standings))
    table = table_of("", "stage", *states, right=tuple(states))
    for stage in dict.fromkeys(s.stage for s in standings):
        own = counts(s for s in standings if s.stage == stage)
        table.add_row(stage, *(str(own.get(state, "")) for state in states))
    left = sum(ledger.entries[s.key].seconds for s in standings if s.state in ("waits", "runs"))
    jobs = len({s.job for s in standings if s.state in ("waits", "runs")})
    still = f"about {duration(left)} of one core left, in {jobs} job{'s' * (jobs != 1)}" if left else "nothing goes on"
    out: list[RenderableType] = [f"{ledger.name} {ledger.key[:16]} on {ledger.executor}: {still}", table]
    busy = [s for s in standings if s.state == "runs"]
    if busy:
        running = table_of("Runs", "record", "job", "where")
        for s in busy[:_SHOWN]:
            running.add_row(f"{s.stage} {s.key[:16]}", s.job, s.why)
        out += [running, *([f"and {len(busy) - _SHOWN} more"] if len(busy) > _SHOWN else [])]
    waiting = [s for s in standings if s.state == "waits"]
    if waiting and not busy:
        out.append(
            f"first of those that wait: {waiting[0].stage} {waiting[0].key[:16]}, job {waiting[0].job}, "
            f"{waiting[0].why}"
        )
    return out


def _failures(ledger: "Ledger", standings: "list[Standing]") -> "list[RenderableType]":
    """Why, with the end of the log of the first that failed of each job."""
    from sublim_interp.experiments.executors.ledger import tail

    out: list[RenderableType] = []
    firsts = {s.job: s for s in reversed(_failed(standings))}
    for s in list(firsts.values())[-_SHOWN:]:
        out.append(f"{s.state}: {s.stage} {s.key[:16]}, job {s.job}: {s.why}")
        path = ledger.log(s.job)
        out += [f"    {line}" for line in tail(path, _LINES)]
        out.append(f"    log: {path}")
    out += [f"dead end: {s.stage} {s.key[:16]}: {s.why}" for s in standings if s.state == "dead end"][:_SHOWN]
    return out


def _follow(run: str, store: "Store") -> None:
    """Shows it every few seconds while something waits or runs."""
    import time

    from rich.console import Console, Group
    from rich.live import Live

    from sublim_interp.experiments.executors.ledger import find_ledger

    with Live(console=Console(highlight=False, markup=False), auto_refresh=False, transient=True) as live:
        while True:
            ledger = find_ledger(store, run)
            standings = _standings(ledger, store)
            live.update(Group(*_shown(ledger, standings)), refresh=True)
            if not any(s.state in ("waits", "runs") for s in standings):
                return
            time.sleep(3)
