"""What a claim is: who says what, what would contradict it, and the tests that decide, each with its threshold."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from sublim_interp.claims.effects import EFFECTS
from sublim_interp.claims.trial import Trial
from sublim_interp.core.choices import meant
from sublim_interp.core.errors import SublimError
from sublim_interp.core.settings import Config
from sublim_interp.core.shelf import Shelf, is_path

WORDS = 10
"""Words of a claim's title at most."""


class Predictions(Config):
    """What a claim predicts for families of open models with several initialisations."""

    polypythia: str
    """For PolyPythias, whose seeds vary initialisation and data order together or apart."""
    datadecide: str
    """For DataDecide, whose seeds vary both."""


def _is_short(text: str) -> str:
    if len(text.split()) > WORDS:
        raise ValueError(f"{len(text.split())} words; {WORDS} are the most")
    return text


class Claim(Config):
    """One claim of the field."""

    name: str
    """Name in the catalogue; digits before its first dash are its number."""
    claim: Annotated[str, AfterValidator(_is_short)]
    """The claim in ten words or fewer."""
    claimed: str
    """What is claimed, in full."""
    by: str
    """Who claims it."""
    evidence: str
    """On what evidence."""
    disputed: str = ""
    """Where the literature contradicts it; empty: nowhere that we know."""
    contradicted_by: str
    """What would contradict it."""
    experiment: str
    """The experiment that tests it, and where it is not in the catalogue, what is missing."""
    cost: str
    """What the experiment takes."""
    scale: str
    """The scale at which the verdict holds."""
    predicts: Predictions
    """What it predicts for open models."""
    depends_on: str = ""
    """What tells the conditions of its tests apart, in a word or two."""
    tests: Annotated[tuple[Trial, ...], Field(min_length=1)]
    """The tests that decide."""

    @model_validator(mode="after")
    def _has_tests_that_can_be_made(self) -> "Claim":
        for test in self.tests:
            EFFECTS[EFFECTS.known(test.effect)].check(test)
        return self

    @model_validator(mode="after")
    def _names_what_it_depends_on(self) -> "Claim":
        if len({test.under for test in self.tests}) > 1 and not self.depends_on:
            raise ValueError("tests under several conditions need depends_on, which names what tells these apart")
        return self

    @property
    def number(self) -> int | None:
        """Its number, or None for a name without one."""
        found = re.match(r"(\d+)-", self.name)
        return int(found[1]) if found else None

    @property
    def short(self) -> str:
        """What it is called by: its number, or else its name."""
        return self.name if self.number is None else str(self.number)


CLAIMS = Shelf("claim", "claims", Claim)
"""Every claim by name."""


def all_claims() -> list[Claim]:
    """Every claim of every catalogue: those with a number by it, then others by name."""
    claims = map(CLAIMS.load, CLAIMS.names())
    return sorted(claims, key=lambda claim: (claim.number is None, claim.number or 0, claim.name))


def find_claim(asked: str) -> Claim:
    """The claim of a number or a name, or the one in a YAML file.

    Raises SublimError, with the valid numbers, for an unknown one, and for a number that two claims have.
    """
    if is_path(asked) or asked in CLAIMS:
        return CLAIMS.load(asked)
    claims = all_claims()
    if asked.isdecimal() and len(asked) < 10:
        found = [claim for claim in claims if claim.number == int(asked)]
        if len(found) == 1:
            return found[0]
        if found:
            raise SublimError(f"{len(found)} claims have the number {asked}: {', '.join(c.name for c in found)}")
    numbers = [claim.number for claim in claims if claim.number is not None]
    named = [claim.name for claim in claims]
    counted = f"{min(numbers)} to {max(numbers)}" if numbers else "no number"
    raise SublimError(
        f"no claim '{asked}'; valid: {counted}, or a name; {meant(asked, named, 'sublim claims', 'names')}"
    )
