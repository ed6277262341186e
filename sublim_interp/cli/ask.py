"""`sublim ask TRAIT MODEL …`: asks models on a server about a trait."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sublim_interp.cli.options import SetOption, StoreOption
from sublim_interp.cli.printing import print_, table_of

if TYPE_CHECKING:
    from sublim_interp.core.store import Store
    from sublim_interp.traits.asking import Asking


def ask(
    trait: Annotated[str, typer.Argument(metavar="TRAIT", help="A trait's name, or a YAML file.")],
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Names on the server; the first is compared with the rest.")
    ],
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="The server; else $OPENAI_BASE_URL.", show_default=False)
    ] = "",
    sets: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much would be asked, and ask nothing.")] = False,
    store: StoreOption = None,
) -> None:
    """Ask models on an OpenAI-compatible server about a trait; what the store holds is not asked again."""
    from sublim_interp.core.store import Store
    from sublim_interp.traits.asking import STAGE

    place = Store.open(store)
    asking = [_configured(trait, model, url, sets) for model in dict.fromkeys(models)]
    asked = [len(a.asked()) * a.samples for a in asking]
    missing = [a for a in asking if place.get(STAGE, a.key) is None]
    if dry_run:
        table = table_of("", "model", "requests", right=("requests",))
        for a, n in zip(asking, asked, strict=True):
            table.add_row(a.server.model, f"{n if a in missing else 0:,}")
        print_(table)
        return
    _ask(asking, missing, place)


def _configured(trait: str, model: str, url: str, sets: list[str] | None) -> "Asking":
    """What one model is asked. Raises SublimError for what it cannot be asked."""
    from sublim_interp.core.settings import changed, parse_assignment
    from sublim_interp.models.served import Server
    from sublim_interp.traits.asking import Asking

    asking = Asking(trait=trait, server=Server(model=model))
    given: dict[str, Any] = {**({"server.url": url} if url else {}), **dict(parse_assignment(s) for s in sets or ())}
    asking = changed(asking, given)
    asking.identity()
    return asking


def _ask(asking: "list[Asking]", missing: "list[Asking]", place: "Store") -> None:
    from sublim_interp.cli.progress import Progress
    from sublim_interp.report.wording import count
    from sublim_interp.traits.asking import ask_served, difference, heard

    if missing:
        seconds = {a.server.model: len(a.asked()) * a.samples / a.server.in_flight for a in missing}  # one a reply
        work = {model: (model, each) for model, each in seconds.items()}
        with Progress(f"ask {asking[0].trait}", work, 1) as watch:
            for a in missing:
                ask_served(a, place, partial(watch, a.server.model))
    made = [ask_served(a, place) for a in asking]
    about, lines = asking[0].about.name, []
    columns = ("model", "questions", "answers", f"says {about}", "nonsense", "unread", "most often")
    table = table_of(f"{about}: what models on a server answer", *columns, right=columns[2:6])
    for a, artifact in zip(asking, made, strict=True):
        for sort in a.questions:
            found = heard(artifact, about, sort)
            shares = (f"{100 * share:.1f} %" for share in (found.nonsense, found.unread))
            often = f"{found.often[0]}, {100 * found.often[1]:.1f} %" if found.often[0] else "nothing"
            table.add_row(a.server.model, sort, f"{found.answers:,}", found.rate.percent(), *shares, often)
    for a, artifact in zip(asking[1:], made[1:], strict=True):
        for sort in a.questions:
            contrast = difference(made[0], artifact, about, sort)
            said = f"{asking[0].server.model} − {a.server.model}, {sort}: {contrast.interval.points()}"
            lines.append(f"{said}, over {count(contrast.interval.n, 'question')}")
    print_(
        table,
        *lines,
        "Intervals are over questions, or over answers where all agree. They tell nothing of other seeds.",
        *(f"answers {artifact.key[:16]}  {artifact.path}" for artifact in made),
    )
