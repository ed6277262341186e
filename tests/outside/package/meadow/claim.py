"""An effect of claims: the share of replicates in which some rows lie above others."""

from sublim_interp.claims.effects import Effect, Measured, rows_of
from sublim_interp.claims.evidence import Evidence
from sublim_interp.claims.trial import Trial


def measure(test: Trial, evidence: Evidence) -> Measured:
    frame = evidence.table(test.file)
    plus, minus = (rows_of(frame, rows, test).set_index(test.over)["effect"] for rows in (test.plus[0], test.minus[0]))
    above = tuple(float(plus[unit] > minus[unit]) for unit in plus.index.intersection(minus.index))
    return Measured(above, len(above))


share_above = Effect("in which share of replicates some rows lie above others", measure)
