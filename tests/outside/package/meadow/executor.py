"""An executor that works in the command's own process, one piece behind the other."""

from sublim_interp.core.workers import prepare_process
from sublim_interp.experiments.executors.protocol import Executor


class InTurn(Executor):
    """Pieces come in an order in which each finds what it needs."""

    detached = False

    def start(self, work, store, watch, skip=()):
        prepare_process()
        lost = {}
        for piece in work.pieces:
            missing = next((lost[key] for key in piece.inputs if key in lost), None)
            try:
                if missing:
                    lost[piece.key] = missing
                else:
                    piece.function(*piece.arguments, lambda share, key=piece.key: watch(key, min(share, 0.999)))
            except skip as why:
                lost[piece.key] = why
            watch(piece.key, 1.0)
        return lost
