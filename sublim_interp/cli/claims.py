"""`sublim claims`: the field's claims with their verdicts, or one of them in full."""

from typing import TYPE_CHECKING, Annotated

import typer

from sublim_interp.cli.options import StoreOption
from sublim_interp.cli.printing import print_, table_of
from sublim_interp.core.errors import SublimError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from sublim_interp.claims.evidence import Evidence
    from sublim_interp.claims.judge import Verdict
    from sublim_interp.claims.schema import Claim


def claims(
    claim: Annotated[
        str | None,
        typer.Argument(metavar="[N]", help="A claim's number or name, or a YAML file of your own.", show_default=False),
    ] = None,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="Judge it by this run, sweep or study of the store: a name or a key.",
            show_default=False,
        ),
    ] = None,
    null: Annotated[
        int,
        typer.Option("--null", metavar="K", min=0, max=10_000, help="Judge K shuffles of each table that nulls use."),
    ] = 0,
    store: StoreOption = None,
) -> None:
    """Show the field's claims with their verdicts, which published results decide; or one claim in full."""
    from sublim_interp.claims.judge import judge, with_given
    from sublim_interp.claims.nulls import null_experiments
    from sublim_interp.claims.schema import all_claims, find_claim
    from sublim_interp.claims.wording import claims_table, null_line

    if null:
        if claim:
            raise SublimError("--null judges shuffled tables, of all claims or none; leave N out")
        print_(null_line(null_experiments(null)))
        return
    if claim is None:
        told = claims_table(judge(all_claims()))
        shown = [i for i, column in enumerate(told.columns) if column not in ("effect", "needs")]
        table = table_of("Claims of the field", *(told.columns[i] for i in shown), right=("no.", "n", "p"))
        table.columns[1].min_width = 48
        for row in told.rows:
            table.add_row(*(row[i] for i in shown))
        print_(table, *told.lines, "One in full: `sublim claims 18`")
        return
    asked = find_claim(claim)
    given = {}
    if run is not None:
        evidence = _evidence(asked, run, store)
        given = {evidence.name: evidence}
    every = [one for one in all_claims() if one.name != asked.name]
    print_(*_shown(judge([asked, *every], with_given(given))[0]))


def _evidence(claim: "Claim", run: str, store: "Path | None") -> "Evidence":
    """The tables of the run that is given, if one of the claim's tests reads it."""
    from sublim_interp.claims.evidence import stored_evidence
    from sublim_interp.core.store import Store

    evidence = stored_evidence(run, Store.open(store))
    valid = dict.fromkeys(test.table for test in claim.tests)
    if evidence.name not in valid:
        raise SublimError(
            f"{run} is of {evidence.name}, which does not test claim {claim.short}; what does: {', '.join(valid)}"
        )
    return evidence


def _shown(verdict: "Verdict") -> "list[RenderableType]":
    """A claim in full: a line of headings on the left, what there is to say on the right."""
    from rich.table import Table

    from sublim_interp.claims.wording import claim_rows

    table = Table.grid(padding=(0, 2))
    for heading, text in claim_rows(verdict):
        table.add_row(heading, text)
    return [f"Claim {verdict.claim.short}: {verdict.claim.claim}", table]
