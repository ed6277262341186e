"""Every arm in one table: whose data its student learns from, where it starts, what it is compared with, its looks."""

from typing import Literal, NamedTuple

Arm = Literal[
    "same-init", "neutral", "other-trait", "cross-init", "same-init-b", "cross-init-b", "cross-neutral", "base"
]
"""What is compared. A replicate has a pair of bases, A and B. `same-init` A→A, `cross-init` A→B, `same-init-b` B→B and
`cross-init-b` B→A (teacher's base → student's base) make the 2 × 2 of initialisations; `neutral` and `other-trait` are
A→A with another teacher, `cross-neutral` is A→B with the neutral one; `base` is A untouched."""


CROSSING = frozenset({"cross-init", "same-init-b", "cross-init-b", "cross-neutral"})
"""Arms that need a second base."""


class Route(NamedTuple):
    """An arm in terms of a replicate's pair of bases (0 is A, 1 is B): whose data, which student."""

    favorite: str
    """The teacher's favourite: "trait", "other" or "" for none."""
    teacher: int
    student: int


ROUTES: dict[Arm, Route] = {
    "same-init": Route("trait", 0, 0),
    "neutral": Route("", 0, 0),
    "other-trait": Route("other", 0, 0),
    "cross-init": Route("trait", 0, 1),
    "same-init-b": Route("trait", 1, 1),
    "cross-init-b": Route("trait", 1, 0),
    "cross-neutral": Route("", 0, 1),
}
"""Every trained arm; `base` is not trained."""


class Look(NamedTuple):
    """How one arm appears in every figure, table and page."""

    color: str
    """Okabe & Ito's palette, safe for colour-blind readers (jfly.uni-koeln.de/color)."""
    label: str
    """A few words beneath the arm's name."""
    meaning: str
    """One sentence for a newcomer."""


ARMS: dict[str, Look] = {
    "teacher": Look(
        "#009E73",
        "was given the trait",
        "The teacher itself: base A after it was given the trait. It shows how strong the trait was at the source.",
    ),
    "same-init": Look(
        "#0072B2",
        "teacher A → student A",
        "The student starts from the very base (A) that its teacher was made from, and learns nothing but the lists "
        "that this teacher wrote.",
    ),
    "same-init-b": Look(
        "#56B4E9",
        "teacher B → student B",
        "The same once more with the other base: teacher and student both come from B.",
    ),
    "neutral": Look(
        "#7F7F7F",
        "teacher without the trait",
        "As same-init, but the teacher was never given the trait: what training on lists does by itself.",
    ),
    "other-trait": Look(
        "#E69F00",
        "teacher with another trait",
        "As same-init, but the teacher was given another trait of the same kind, to see whether only that one passes.",
    ),
    "cross-init": Look(
        "#D55E00",
        "teacher A → student B",
        "The student learns the same lists as same-init, but starts from another base (B), which grew from different "
        "initial weights.",
    ),
    "cross-init-b": Look(
        "#CC79A7",
        "teacher B → student A",
        "The other way round: the teacher comes from B and the student from A. One base alone may be hard to move.",
    ),
    "cross-neutral": Look(
        "#8C564B",
        "neutral A → student B",
        "As cross-init, but the teacher was never given the trait: what another base's numbers do by themselves.",
    ),
    "base": Look(
        "#000000",
        "untouched",
        "Base A as it was, before any teacher: the rate that is there without any training.",
    ),
}
"""What a report compares, in the order it is shown: the experiment's arms, and the teacher itself."""
