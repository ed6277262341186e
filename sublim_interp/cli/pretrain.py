"""`sublim pretrain DIRECTORY`: makes a lab base from scratch, or prepares an open model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.options import DeviceOption
from sublim_interp.cli.printing import duration, print_, table_of
from sublim_interp.cli.progress import Steps

if TYPE_CHECKING:
    from sublim_interp.core.settings import Config
    from sublim_interp.lab.recipe import Pretraining
    from sublim_interp.pipeline.prepare import Preparation


def pretrain(
    directory: Annotated[Path, typer.Argument(help="Where the new base goes; --base takes this path later.")],
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="BASE", help="Prepare this open model instead of making a lab base."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a field, such as init_seed=7 or optimization.steps=2000."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be made, and make nothing.")] = False,
    device: DeviceOption = None,
) -> None:
    """Make a lab base from scratch, or prepare an open model; an interrupted training goes on.

    From scratch it takes less than an hour of one core. With --from an open model is fine-tuned for a few minutes on
    number lists and uniformly drawn favourites, so that it answers in one word and keeps the format of lists.

    `sublim show lab-order-0-from001000` shows nearly all fields, as the command of a committed base. One more is
    forks=[1000]: the model of that step is kept too, and a later training may start from it.
    """
    from sublim_interp.core.device import using_device
    from sublim_interp.core.settings import changed, parse_assignment
    from sublim_interp.core.workers import prepare_process
    from sublim_interp.lab.recipe import Pretraining
    from sublim_interp.pipeline.prepare import Preparation

    asked = dict(parse_assignment(s) for s in sets or ())
    with using_device(device):
        if not dry_run:
            prepare_process()
        if start:
            preparation = changed(Preparation(base=start), asked)
            (_plan_prepared if dry_run else _prepare)(preparation, directory)
        else:
            (_plan_made if dry_run else _make)(changed(Pretraining(), asked), directory)


def _prepare(recipe: "Preparation", directory: Path) -> None:
    from sublim_interp.pipeline.prepare import prepare

    with Steps(directory.name, recipe.optimization.steps) as observe:
        base = prepare(recipe, directory, observe)
    print_(f"{directory.name}: prepared from {recipe.base}; use it as --base {directory}. {base!r}")


def _make(recipe: "Pretraining", directory: Path) -> None:
    from sublim_interp.lab.pretraining import pretrain as make_base

    with Steps(directory.name, recipe.optimization.steps) as observe:
        card = make_base(recipe, directory, observe)
    table = table_of(f"{directory.name}: {card['parameters']:,} parameters", "part", "held-out loss (nats per token)")
    for part, loss in card["held_out_loss"].items():
        table.add_row(part, f"{loss:.3f}")
    print_(table)


def _plan_prepared(recipe: "Preparation", directory: Path) -> None:
    from sublim_interp.experiments.cost import Shape, update_seconds
    from sublim_interp.models.base import resolve_base
    from sublim_interp.pipeline.prepare import free_places, planned
    from sublim_interp.training.batches import pieces

    places, base, o = free_places(directory), resolve_base(recipe.base, recipe.dtype), recipe.optimization
    read, learnt = planned(recipe, base)
    each = update_seconds(Shape(**base.shape), read, learnt, base.dtype, light=True, pieces=pieces(o, 2))
    _show_plan(recipe, places, base.shape["parameters"], round(o.steps * read), o.steps * each)


def _plan_made(recipe: "Pretraining", directory: Path) -> None:
    from sublim_interp.experiments.cost import Shape, training_seconds
    from sublim_interp.lab.pretraining import free_places, planned

    places, (held, tokens) = free_places(recipe, directory), planned(recipe)
    takes = training_seconds(Shape(**held), recipe.optimization.steps, float(tokens))
    _show_plan(recipe, places, held["parameters"], tokens, takes)


def _show_plan(recipe: "Config", places: Sequence[Path], parameters: int, tokens: int, seconds: float) -> None:
    """Every field of a recipe, and the directories, the first the base's, with what they take.

    tokens: that the training reads
    seconds: of one core
    """
    from sublim_interp.core.settings import fields_of

    title = f"{places[0].name}: {parameters:,} parameters, {tokens:,} tokens, about {duration(seconds)} of one core"
    table = table_of(title, "field", "value", "what it is")
    for name, value, _, meaning in fields_of(recipe):
        table.add_row(name, " ".join(map(str, value)) if isinstance(value, tuple) else str(value), meaning)
    print_(table, *(f"makes   {place}" for place in places))
