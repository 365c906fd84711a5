"""Every judge of the critic calibrated by itself on the held-out judgements, and how far they agree with people and each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grape.evaluation.judges import JUDGES, JudgeReport, JudgesReport
from grape.files import write_json
from grape.reward.critics.agreement import between, evidence, mean_of, statistic
from grape.reward.critics.calibration import Calibration, calibrate, measured
from grape.reward.critics.judge import FIRST, PANEL, Judge
from grape.reward.rubric import Rubric
from grape.reward.verdict import Critic, Question
from grape.stages.stage import Stage


@dataclass(frozen=True)
class Heldout:
    """n labelled judgements: names `category/item`, labels (n,) 1 for yes; `fit` calibrates, `measure` measures."""

    names: list[str]
    questions: list[Question]
    labels: Tensor
    fit: list[int]
    measure: list[int]

    def evidence(self, critic: Critic) -> Tensor:
        """(n,) what the critic says of `fit` and `measure`, NaN elsewhere: it is asked nothing else."""
        z, asked = torch.full((len(self.names),), torch.nan), [*self.fit, *self.measure]
        if asked:
            said = critic.judge([self.names[i] for i in asked], [self.questions[i] for i in asked])
            z[asked] = said.evidence.float().cpu()
        return z


def calibrate_all(stage: Stage, judges: dict[str, tuple[Judge, Critic]], heldout: Heldout) -> JudgesReport:
    """Writes each judge's settings and calibration: of critic.judge into models/critic, of the others into its panel."""
    reports, said = [], []
    for name, (judge, critic) in judges.items():
        z = heldout.evidence(critic)
        calibration, numbers = calibrate(heldout.names, z, heldout.labels, heldout.fit, heldout.measure, judge.calibration)
        folder = stage.path("models/critic") / ("" if name == FIRST else f"{PANEL}/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        calibration.write(folder)
        judge.write(folder)
        who = {"name": name, "backend": judge.backend, "model": judge.model, "repeats": judge.repeats}
        reports.append(JudgeReport.model_validate(who | {"curves": len(calibration.items), "numbers": numbers}))
        said.append(calibration.apply(heldout.names, z)[heldout.measure])
    names, labels = [heldout.names[i] for i in heldout.measure], heldout.labels[heldout.measure]
    agree: dict[str, float] = {}
    if len(said) > 1:
        p = torch.stack(said, 1)
        together = measured(names, evidence(mean_of(p)), labels, Calibration({}))
        curves = min(report.curves for report in reports)
        reports.append(JudgeReport(name=PANEL, backend=None, model=None, repeats=1, curves=curves, numbers=together))
        agree = between(names, torch.where(p.isfinite(), (p > 0.5).float(), torch.nan).T)
    return JudgesReport(judges=tuple(reports), statistic=statistic(len(said)), between=agree)


def tell(stage: Stage, found: JudgesReport, rubrics: dict[str, Rubric], labelled: int) -> None:
    """Keep the record, put its numbers into the receipt, and say on the screen where nobody knows how good a judge is."""
    write_json(stage.path(JUDGES), found.model_dump())
    asked = any(item.kind == "critic" for rubric in rubrics.values() for item in rubric.items)
    for report in found.judges if asked else ():
        if not report.curves:
            why = "no labelled judgements" if not labelled else "too few held-out judgements of both kinds"
            print(f"critic: {report.name} is not calibrated, its confidence is its own: there are {why}", flush=True)
    numbers = dict(found.judges[-1].numbers)  # of the panel, where there is one
    for report in found.judges[:-1]:
        whole = {name: report.of("", name) for name in ("agreement", "kappa", "ece")}
        numbers |= {f"judge/{report.name}/{name}": value for name, value in whole.items() if value is not None}
    if "" in found.between:
        numbers["judges/kappa" if len(found.judges) == 3 else "judges/alpha"] = found.between[""]
    stage.run.headline({"judgements": float(labelled)} | numbers)
