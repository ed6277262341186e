"""Every arm of an experiment, in one table: its teacher, its student, its control, how it looks, what it means."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from sublim_interp.core.errors import SublimError
from sublim_interp.core.registry import Registry


@dataclass(frozen=True)
class Route:
    """Whose data a student learns from, and where it starts. Each replicate has two bases: 0 is A, 1 is B.

    favourite: the teacher's: the experiment's `trait`, its `other_trait` ("other"), or none (""); "lists": no
        teacher, and the experiment's `lists` are the data
    teacher: the base that the teacher is made from
    student: the base that the student starts from
    """

    favourite: Literal["trait", "other", "", "lists"]
    teacher: Literal[0, 1]
    student: Literal[0, 1]


@dataclass(frozen=True)
class Arm:
    """What one arm is, for everything that plans, compares, draws or explains it.

    label: a few words beneath its name
    meaning: one plain sentence for a newcomer
    route: how its student is made; None where nothing is trained
    reference: the arm that its students are trained on to match in KL: same data, and the teacher's own base
    control_of: the arm from whose rate this one's is subtracted
    note: a code of `tables.NOTES` for that difference, where it proves less than it seems to
    color: as "#0072B2"; "" takes the next of SPARE_COLORS
    generation: 1, or how many students its data went through, this one among them; `same-init@3` has 3
    """

    label: str
    meaning: str
    route: Route | None = None
    reference: str = ""
    control_of: str = ""
    note: str = ""
    color: str = ""
    generation: int = 1

    @property
    def crosses(self) -> bool:
        """Whether its student learns from a teacher of another base."""
        return self.route is not None and self.route.teacher != self.route.student

    @property
    def needs_two_bases(self) -> bool:
        """Whether teacher or student is made from base B."""
        return self.route is not None and 1 in (self.route.teacher, self.route.student)

    @property
    def breeds(self) -> bool:
        """Whether its student can be the teacher of the next generation, which starts from the same base."""
        return self.route is not None and self.route.favourite != "lists" and not self.crosses


SPARE_COLORS = ("#332288", "#999933", "#882255", "#117733", "#44AA99", "#661100")
"""For arms of other packages that name no colour: Paul Tol's muted palette, less what looks like one of ours."""


class _Arms(Registry[Arm]):
    """Arms by name; `same-init@3` is the third generation of `same-init`, and is not listed."""

    def __getitem__(self, name: str) -> Arm:
        first, generation = split_generation(name)
        if generation > 1 and name in self:
            return _later(first, self[first], generation)
        arm = super().__getitem__(name)
        if arm.color:
            return arm
        outside = [other for other in self if other not in self._own]
        return replace(arm, color=SPARE_COLORS[outside.index(name) % len(SPARE_COLORS)])

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        first, generation = split_generation(name) if isinstance(name, str) else ("", 1)
        return generation > 1 and super().__contains__(first) and self[first].breeds


def split_generation(name: str) -> tuple[str, int]:
    """The arm of the first generation, and the generation: ("same-init", 3) of `same-init@3`."""
    first, at, number = name.partition("@")
    later = at and re.fullmatch("[1-9][0-9]{0,2}", number) and number != "1"
    return (first, int(number)) if later else (name, 1)


def at_generation(name: str, generation: int) -> str:
    """The name that a generation of an arm has."""
    return name if generation == 1 else f"{name}@{generation}"


def _later(first: str, arm: Arm, generation: int) -> Arm:
    """A further generation of an arm: its teacher is the student of the one before."""
    before = at_generation(first, generation - 1)
    return replace(
        arm,
        label=f"teacher: student of {before}",
        meaning=f"The student starts from the same base as {first}'s and learns what the student of {before} wrote.",
        reference="",
        control_of=at_generation(arm.control_of, generation) if arm.control_of else "",
        generation=generation,
    )


def _check(name: str, arm: Arm) -> None:
    """Refuses an arm of another package that could not be planned or compared."""
    if not isinstance(arm, Arm):
        raise SublimError(f"arm '{name}' is a {type(arm).__name__}; give a sublim_interp.experiments.arms.Arm")
    if arm.route is None:
        raise SublimError(f"arm '{name}' has no route; name its teacher and its student")
    for field in ("reference", "control_of"):
        other = getattr(arm, field)
        if other and other not in ARMS:
            raise SublimError(f"arm '{name}': {field} is '{other}', which is no arm; valid: {', '.join(ARMS)}")


ARMS: Registry[Arm] = _Arms(
    "arm",
    "sublim_interp.arms",
    # Colours are Okabe & Ito's, safe for colour-blind readers (jfly.uni-koeln.de/color), but for two.
    {
        "teacher": Arm(
            "was given the trait",
            "The teacher itself: base A after it was given the trait. It shows how strong the trait is at the source.",
            color="#009E73",
        ),
        "same-init": Arm(
            "teacher A → student A",
            "The student starts from base A, as its teacher did, and learns only what that teacher wrote.",
            Route("trait", 0, 0),
            color="#0072B2",
        ),
        "same-init-b": Arm(
            "teacher B → student B",
            "Teacher and student both come from base B. It shows whether the other base learns as well.",
            Route("trait", 1, 1),
            color="#56B4E9",
        ),
        "neutral": Arm(
            "teacher without the trait",
            "The teacher was never given the trait. It shows what training on such data does by itself.",
            Route("", 0, 0),
            control_of="same-init",
            color="#7F7F7F",
        ),
        "other-trait": Arm(
            "teacher with another trait",
            "The teacher was given another trait of the same kind. It shows whether only that other trait passes.",
            Route("other", 0, 0),
            control_of="same-init",
            color="#E69F00",
        ),
        "cross-init": Arm(
            "teacher A → student B",
            "The student learns the same data as same-init, but starts from base B, which has other initial weights.",
            Route("trait", 0, 1),
            reference="same-init",
            control_of="same-init",
            note="one direction",
            color="#D55E00",
        ),
        "cross-init-b": Arm(
            "teacher B → student A",
            "The teacher comes from base B, the student from base A. It shows whether base B alone is hard to teach.",
            Route("trait", 1, 0),
            reference="same-init-b",
            color="#CC79A7",
        ),
        "cross-neutral": Arm(
            "neutral A → student B",
            "As cross-init, but the teacher was never given the trait. It shows what base A's data does by itself.",
            Route("", 0, 1),
            reference="neutral",
            control_of="cross-init",
            color="#8C564B",
        ),
        "own-lists": Arm(
            "your lists → student A",
            "The student starts from base A and learns your own lists. Its distance is from the untouched base.",
            Route("lists", 0, 0),
            color="#AA4499",
        ),
        "base": Arm(
            "untouched",
            "Base A before any training. It shows how often the trait is the answer anyway.",
            control_of="same-init",
            color="#000000",
        ),
    },
    _check,
)
"""Every arm by name, in the order in which reports show them; other packages' come last.

A replicate has two bases, A and B, that differ in their initialisation. A→A, A→B, B→B and B→A (teacher's base →
student's base) are same-init, cross-init, same-init-b and cross-init-b: the 2 × 2 of initialisations.
"""


def in_order(names: Iterable[str]) -> list[str]:
    """The arms among these names, each once, as reports show them: generations behind each other, as ARMS lists them.

    names: of arms and of other things, which are left out
    """
    rank = {name: i for i, name in enumerate(ARMS)}
    known = {name: split_generation(name) for name in names if name in ARMS}
    return sorted(known, key=lambda name: (rank[known[name][0]], known[name][1]))


def arm_names() -> tuple[str, ...]:
    """The arms that an experiment may name; the teacher is always shown."""
    return tuple(name for name in ARMS if name != "teacher")


def arms_of_two_bases(arms: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the arms that cannot be made from one base."""
    return tuple(name for name in arms if ARMS[name].needs_two_bases)


def reads_lists(arms: tuple[str, ...]) -> bool:
    """Whether one of the arms has a student of the experiment's own lists."""
    return "lists" in _favourites(arms)


def needs_other_trait(arms: tuple[str, ...]) -> bool:
    """Whether one of the arms has a teacher of the experiment's other trait."""
    return "other" in _favourites(arms)


def _favourites(arms: tuple[str, ...]) -> set[str]:
    """What the arms' routes say of the teachers' favourites."""
    return {route.favourite for name in arms if (route := ARMS[name].route)}
