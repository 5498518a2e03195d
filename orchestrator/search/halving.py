"""ASHA on early epochs: Ray Tune's scheduler decides, and what it compared is kept as evidence."""

from __future__ import annotations

from typing import Any

from orchestrator.search.ledger import Rung
from specs.search import AshaSpec
from specs.words import counted

_SHARES = {2.0: "half", 3.0: "third", 4.0: "quarter", 5.0: "fifth"}


class Halving:
    """Judges trials of one search.

    Args:
        spec: when it judges, and how many go on.
        epochs: of the last training stage.
    """

    def __init__(self, spec: AshaSpec, epochs: int) -> None:
        from ray.tune.schedulers import ASHAScheduler

        self._epochs = epochs
        self._scheduler: Any = ASHAScheduler(
            time_attr="epoch",
            metric="top1",
            mode="max",
            max_t=epochs,
            grace_period=spec.grace_epochs,
            reduction_factor=spec.reduction_factor,
            stop_last_trials=False,
        )
        self._trials: dict[int, Any] = {}

    def judge(self, trial: int, epoch: int, top1: float) -> Rung | None:
        """Judge a trial after an epoch; `None` where nothing is compared.

        Args:
            trial: its number.
            epoch: epochs of the last stage that are done.
            top1: in %.
        """
        if epoch >= self._epochs:
            return None
        rungs = self._scheduler._brackets[0]._rungs  # nobody else says what a decision rested on
        before = [(dict(recorded), recorded) for _, recorded in rungs]
        decision = self._scheduler.on_trial_result(None, self._known(trial), {"epoch": epoch, "top1": top1})
        for earlier, now in before:
            if len(now) > len(earlier):
                cutoff = self._scheduler._brackets[0].cutoff(earlier)
                return Rung(
                    trial=trial,
                    epoch=epoch,
                    top1=top1,
                    cutoff=None if cutoff is None else float(cutoff),
                    others=len(earlier),
                    goes_on=decision == self._scheduler.CONTINUE,
                )
        return None

    def _known(self, trial: int) -> Any:
        from ray.tune.experiment import Trial

        if trial not in self._trials:
            self._trials[trial] = Trial("slimvit", stub=True, trial_id=f"{trial:05d}")
            self._scheduler.on_trial_add(None, self._trials[trial])
        return self._trials[trial]


def evidence(rung: Rung, spec: AshaSpec, epochs: int) -> str:
    """Why a trial was stopped, for people."""
    assert rung.cutoff is not None, "the first trial at an epoch goes on"
    share = _SHARES.get(spec.reduction_factor, f"{100 / spec.reduction_factor:.0f} %")
    digits = next((n for n in range(1, 6) if f"{rung.top1:.{n}f}" != f"{rung.cutoff:.{n}f}"), 6)
    return (
        f"stopped after epoch {rung.epoch} of {epochs}: top-1 {rung.top1:.{digits}f} % < {rung.cutoff:.{digits}f} %, "
        f"which the best {share} of {counted(rung.others, 'trial')} had reached there"
    )
