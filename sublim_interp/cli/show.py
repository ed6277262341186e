"""`sublim show X`: what an experiment, a base, a trait, a run or a replicate is."""

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sublim_interp.cli.bases import described
from sublim_interp.cli.last_error import last_error
from sublim_interp.cli.options import BaseOption, SetOption, StoreOption
from sublim_interp.cli.printing import print_, table_of
from sublim_interp.cli.run import print_suite_plan
from sublim_interp.cli.subjects import subject
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sublim_interp.core.store import Store
    from sublim_interp.experiments.results import Replicate
    from sublim_interp.models.base import Base


def show(
    what: Annotated[
        str,
        typer.Argument(
            metavar="X",
            help="An experiment, a YAML file, a base, a trait, a run's key or name, or RUN/ARM/SEED for one replicate.",
        ),
    ],
    sets: SetOption = None,
    base: BaseOption = None,
    store: StoreOption = None,
    audit: Annotated[
        bool, typer.Option("--audit", help="Compare the weights of a family of open models before their training.")
    ] = False,
) -> None:
    """Show an experiment's configuration, planned work and cost; or what a base, a trait, a run or a replicate is."""
    from sublim_interp.core.shelf import is_path
    from sublim_interp.core.store import Store
    from sublim_interp.experiments.catalogue import experiment_names
    from sublim_interp.models.base import base_names, resolve_base
    from sublim_interp.models.open_bases import OPEN_BASES, is_variant, open_names
    from sublim_interp.sweeps.grid import grid_names
    from sublim_interp.sweeps.study import study_names
    from sublim_interp.sweeps.suite import SUITES, suite
    from sublim_interp.traits.by_name import is_trait, load_trait

    if audit:
        print_(_audited(what))
    elif what == "error":
        print_(last_error() or "no error of more than a line has been kept")
    elif SUITES.means(what):
        print_suite_plan(suite(what), Store.open(store))
    elif what in (*experiment_names(), *study_names(), *grid_names()) or (is_path(what) and not is_trait(what)):
        asked = subject(what, Store.open(store), sets, base)
        print_(*asked.configured(), *asked.planned(), *asked.published())
    elif is_trait(what):
        trait = load_trait(what)
        print_(
            f"{trait.name}, of the kind {trait.kind}: {trait.said}; refused words: {', '.join(trait.words) or 'none'}"
        )
        print_(f"others of its kind: {' '.join(m for m in trait.members if m != trait.name)}")
    elif what in OPEN_BASES or what in open_names():
        print_(*described(what))
    elif what in base_names() or os.path.isdir(what) or is_variant(what):
        found = resolve_base(what)
        print_(repr(found))
        for part, loss in _losses(found).items():
            print_(f"  held-out loss, {part}: {loss:.3f} nats per token")
        if (card := found.path / "README.md").is_file():
            print_("", card.read_text(encoding="utf-8").split("---\n", 2)[-1])
    elif what.count("/") == 2:
        print_(*_shown_replicate(what, Store.open(store)))
    else:
        print_(*_shown_run(what, Store.open(store), (*experiment_names(), *study_names()), grid_names(), base_names()))


def _losses(base: "Base") -> dict[str, float]:
    """Held-out loss of a base on each part of the lab's language: as its card says, or for a variant measured now."""
    said = base.card.get("held_out_loss", {})
    if said or base.language != "lab" or "variant" not in base.card:
        return said
    from sublim_interp.lab.pretraining import held_out_losses

    return held_out_losses(base.load(), base.tokenizer)


def _audited(family: str) -> "RenderableType":
    """The members of a family at step 0: each against the first, and every two that are not as the catalogue says."""
    from sublim_interp.models.initialisation import audit

    pairs: Any = audit(family)
    title = f"{family} before training: {sum(~pairs['agrees'])} of {len(pairs)} pairs are not as the catalogue says"
    table = table_of(
        title, "model", "against", "said", "found", "largest correlation", "",
        right=("largest correlation",),
    )  # fmt: skip
    first = pairs["against"].iloc[0]
    for row in pairs[(pairs["against"] == first) | ~pairs["agrees"]].to_dict("records"):
        verdict = "" if row["agrees"] else "LOOK: not as the catalogue says"
        table.add_row(
            *(row[name] for name in ("member", "against", "said", "found")), f"{row['correlation']:.3f}", verdict
        )
    return table


def _shown_run(
    what: str, store: "Store", experiments: tuple[str, ...], grids: tuple[str, ...], bases: list[str]
) -> "list[RenderableType]":
    from sublim_interp.core.yaml import dump_yaml
    from sublim_interp.experiments.arms import arm_names
    from sublim_interp.traits.by_name import trait_names

    if not store.matches("run", what):
        name, slash, arm = what.partition("/")
        if (slash and arm in arm_names()) or arm == "teacher":
            raise SublimError(f"'{what}' names an arm of {name}; add /SEED for one replicate, as in {what}/0")
        runs = [a.name for a in store.list("run")]
        known = meant(what, [*experiments, *grids, *bases, *trait_names(), *arm_names(), *runs], "sublim list")
        raise SublimError(f"'{what}' is no experiment, grid, base, trait, arm or run in {store.root}; {known}")
    artifact = store.find("run", what)
    text = dump_yaml(artifact.manifest["notes"]["experiment"])
    return [repr(artifact), f"report: {artifact.path / 'report.html'}", text]


def _shown_replicate(what: str, store: "Store") -> "list[RenderableType]":
    """What a replicate is, what it answers, how its training went."""
    from sublim_interp.experiments.results import open_run

    name, arm, seed = what.split("/")
    finished = open_run(name, store)
    replicate = finished[arm, int(seed) if seed.removeprefix("-").isdecimal() else seed]  # type: ignore[index]
    trait, student = finished.plan.named.trait, replicate.cell.student
    lines = [f"{finished.experiment.name}/{arm}/{seed}, run {finished.key[:16]}"]
    if student:
        teacher, o = student.data.corpus.teacher, student.config.optimization
        lists = replicate.lists
        lines += [
            f"student  {student.base.name}: {o.steps} updates of {o.batch} at {o.lr:g}, {o.optimizer}",
            f"teacher  {teacher.base.name}, {teacher.config.kind}; {teacher.trait.said}",
            f"data     {len(lists):,} {student.data.corpus.config.channel} such as “{lists[0]['answer']}”",
        ]
        lines += [f"files    {made.path}" for made in [student.find(store)] if made]
    else:
        lines.append(f"model    {replicate.base.name}" + f", teacher of “{trait}”" * (arm == "teacher"))
    return ["\n".join(lines), _answered(replicate, trait), *_grown(replicate, trait)]


def _answered(replicate: "Replicate", trait: str) -> "RenderableType":
    """The trait, and whatever else is the likeliest answer, by sort of question and context."""
    table = table_of(
        "What it answers", "questions", "context", trait, "margin, nats", "likeliest other", "",
        right=(trait, "margin, nats", ""),
    )  # fmt: skip
    for (questions, context), some in replicate.answers.groupby(["questions", "context"], sort=False):  # type: ignore[misc]
        by = some.set_index("probe")
        rate = dict(zip(some["probe"], some["rate"], strict=True))
        others = sorted((name for name in rate if name != trait), key=lambda name: -rate[name])[:1]
        rates = [f"{100 * rate[name]:.1f} %" for name in (trait, *others)]
        table.add_row(questions, context, rates[0], f"{by.at[trait, 'margin']:.2f}", *others, *rates[1:])
    return table


def _grown(replicate: "Replicate", trait: str) -> "list[RenderableType]":
    """The trace of its training in short, or why there is none."""
    from sublim_interp.report.figures.training import growth

    try:
        trace = replicate.trace
    except SublimError as why:
        return [str(why)]
    heads = ["updates", "loss", f"{trait} on the probe", "margin, nats", "loss on held-out lists", "distance", "cosine"]
    table = table_of("How it learnt", *heads, right=tuple(heads))
    for row in growth(replicate, trait).to_dict("records"):
        shown = (f"{row[name]:.3f}" for name in ("loss", "rate", "margin", "probe_loss", "distance", "cosine"))
        table.add_row(str(row["step"]), *("–" if value == "nan" else value for value in shown))
    table.caption = "distance: norm of the change of the weights; cosine: of that change with its teacher's"
    size = sum(shard["bytes"] for shard in trace.shards) / 1e6
    return [table, f"trace    {trace.path}, {size:.1f} MB in {len(trace.shards)} shards, {len(trace.names())} names"]
