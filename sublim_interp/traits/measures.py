"""What traits measure beside rate and margin: each a column of results, by name, with its heading and its meaning."""

from typing import NamedTuple

from sublim_interp.core.registry import Registry, instances_of


class Measure(NamedTuple):
    """A column that a trait's scores may have.

    heading: of the column, on the page
    meaning: one sentence that says what the number is
    """

    heading: str
    meaning: str


MEASURES: Registry[Measure] = Registry(
    "measure",
    "sublim_interp.measures",
    {
        "bits": Measure(
            "bits a fact", "lower bound on what the student holds of each fact, to within one bit over all"
        ),
        "total_bits": Measure(
            "bits in all",
            "the same of all facts: what the student saves in naming them, against facts drawn anew",
        ),
        "elsewhere": Measure("where it should not show", "the trait's rate on questions where it should not show"),
        "trait_bits": Measure(
            "bits of the trait",
            "how much nearer to the trait the answers are than the base's, over all that is asked; below 0: further",
        ),
        "unjudged": Measure("unjudged", "share of the drawn answers that the judge could not read; they name nobody"),
    },
    instances_of("measure", Measure),
)
"""Every measure by name, in the order in which tables show them."""
