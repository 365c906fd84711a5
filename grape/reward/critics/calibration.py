"""From a critic's raw log-odds of yes to a probability that agrees with people, per item, and how well that works held out.

    Platt: p = sigma(slope z + offset);   isotonic: the monotone step function closest to the labels, only where there are many.

The functions know numbers and names alone, so every backend's `Verdicts.evidence` can be calibrated the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from grape.errors import GrapeError
from grape.files import write_json
from grape.randomness import generator
from grape.reward.critics.agreement import kappa

CALIBRATION = "calibration.json"
RUN_CRITIC = "run the critic stage again: grape run critic"
Method = Literal["platt", "isotonic"]
# scikit-learn's own advice: with much fewer than a thousand labels an isotonic fit follows the noise.
LEAST_ISOTONIC = 1000


@dataclass(frozen=True)
class Isotonic:
    """A monotone function through the points (x, y), x log-odds and y probabilities; flat outside, linear between."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        ordered = all(a <= b for values in (self.x, self.y) for a, b in zip(values, values[1:], strict=False))
        if not self.x or len(self.x) != len(self.y) or not ordered or not 0 <= self.y[0] <= self.y[-1] <= 1:
            raise ValueError("an isotonic curve needs points in ascending order, with probabilities in [0, 1]")


Curve = tuple[float, float] | Isotonic


@dataclass(frozen=True)
class Calibration:
    """A curve per item name `category/item`; "" is the fallback over all items. A pair is Platt's slope and offset."""

    items: Mapping[str, Curve]

    def knows(self, name: str) -> bool:
        return name in self.items or "" in self.items

    def known(self, names: Sequence[str]) -> Tensor:
        """(n,) bool: there is a curve for the item."""
        return torch.tensor([self.knows(name) for name in names], dtype=torch.bool)

    def apply(self, names: Sequence[str], z: Tensor) -> Tensor:
        """(n,) probabilities of yes; without a curve sigma(z); NaN stays NaN."""
        p = torch.sigmoid(z)
        for name, index in _places(names).items():
            curve = self.items.get(name, self.items.get("", (1.0, 0.0)))
            if isinstance(curve, Isotonic):
                p[index] = torch.from_numpy(np.interp(z[index].double().cpu().numpy(), curve.x, curve.y)).to(p)
            else:
                p[index] = torch.sigmoid(curve[0] * z[index] + curve[1])
        return p

    def write(self, folder: Path) -> None:
        curves = {name: {"x": list(c.x), "y": list(c.y)} if isinstance(c, Isotonic) else list(c) for name, c in self.items.items()}
        write_json(folder / CALIBRATION, dict(sorted(curves.items())))

    @classmethod
    def read(cls, folder: Path) -> Calibration:
        """The calibration of a critic's folder. Raises GrapeError: it cannot be read, or is none."""
        try:
            stored = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
            return cls({name: _curve(given) for name, given in stored.items()})
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            what = f"the critic's calibration cannot be read: {error}"
            raise GrapeError(what, where=str(folder / CALIBRATION), mend=RUN_CRITIC) from error


def _curve(given: Any) -> Curve:
    if isinstance(given, dict):
        return Isotonic(tuple(map(float, given["x"])), tuple(map(float, given["y"])))
    slope, offset = map(float, given)
    if not np.isfinite([slope, offset]).all():
        raise ValueError(f"slope {slope}, offset {offset}")
    return slope, offset


def _places(names: Sequence[str]) -> dict[str, Tensor]:
    """Where each name stands, names in order of their first appearance."""
    return {name: torch.tensor([i for i, other in enumerate(names) if other == name]) for name in dict.fromkeys(names)}


def _platt(z: Tensor, label: Tensor) -> Curve:
    from sklearn.linear_model import LogisticRegression

    # A weak ridge keeps a separable item's slope finite.
    fitted = LogisticRegression(C=10.0).fit(z.double().unsqueeze(1).numpy(), label.numpy())
    return round(float(fitted.coef_[0, 0]), 6), round(float(fitted.intercept_[0]), 6)


def _isotonic(z: Tensor, label: Tensor) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression(out_of_bounds="clip").fit(z.double().numpy(), label.double().numpy())
    # n labels of one kind are no proof of certainty: Laplace's bound on what they can show.
    least = 1 / (len(z) + 2)
    return Isotonic(tuple(map(float, fitted.X_thresholds_)), tuple(map(float, np.clip(fitted.y_thresholds_, least, 1 - least))))


def fit_calibration(names: Sequence[str], z: Tensor, label: Tensor, least: int = 50, method: Method = "platt") -> Calibration:
    """A curve per item with at least `least` judgements of both kinds, and one over all items.

    Args:
        names: n item names; z: (n,) finite log-odds of yes; label: (n,) 1 for yes.
        method: isotonic falls back to Platt where there are fewer than LEAST_ISOTONIC judgements.
    """
    items: dict[str, Curve] = {}
    for name, index in {"": torch.arange(len(z)), **dict(sorted(_places(names).items()))}.items():
        yes = int(label[index].sum())
        if min(yes, len(index) - yes) > 0 and (name == "" or len(index) >= least):
            fit = _isotonic if method == "isotonic" and len(index) >= LEAST_ISOTONIC else _platt
            items[name] = fit(z[index], label[index])
    return Calibration(items)


def expected_calibration_error(p: Tensor, label: Tensor, bins: int = 10) -> float:
    """ECE over equal-mass bins: mean over bins of |mean p - share of label 1|, weighted by the bin's size. p: (n,) of yes."""
    order = torch.argsort(p, stable=True)
    parts = torch.tensor_split(order, min(bins, len(order)))
    return float(sum(abs(float(p[i].mean()) - float(label[i].float().mean())) * len(i) for i in parts) / max(len(p), 1))


def ece_floor(p: Tensor, draws: int = 20) -> float:
    """The mean ECE of a perfectly calibrated judge with these probabilities and as many labels: less cannot be told from luck."""
    uniform = generator("ece floor", len(p)).random((draws, len(p)))
    labels = torch.from_numpy(uniform) < p.double()
    return sum(expected_calibration_error(p, label) for label in labels) / draws


def measured(names: Sequence[str], z: Tensor, label: Tensor, calibration: Calibration) -> dict[str, float]:
    """Agreement with the labels, ECE and Brier score after calibration and (`_before`) without it, over all and per item; after it
    also Cohen's kappa with the labels, where it is defined.
    Judgements that are missing (NaN) are counted and left out."""
    there = torch.isfinite(z)
    values = {"judged": float(there.sum()), "missing": float((~there).sum())}
    kept = [name for name, ok in zip(names, there.tolist(), strict=True) if ok]
    z, label = z[there], label[there]
    if not kept:
        return values
    raw, p = torch.sigmoid(z), calibration.apply(kept, z)
    for prefix, at in {"": torch.arange(len(kept)), **{f"{n}/": i for n, i in sorted(_places(kept).items())}}.items():
        for when, probability in (("", p[at]), ("_before", raw[at])):
            values[f"{prefix}agreement{when}"] = float(((probability > 0.5) == (label[at] == 1)).float().mean())
            values[f"{prefix}ece{when}"] = expected_calibration_error(probability, label[at])
            values[f"{prefix}brier{when}"] = float((probability - label[at]).square().mean())
        values[f"{prefix}ece_floor"] = ece_floor(p[at])
        values[f"{prefix}judged"] = float(len(at))
        if (chance_corrected := kappa((p[at] > 0.5).long(), label[at].long())) == chance_corrected:
            values[f"{prefix}kappa"] = chance_corrected
    return values


def calibrate(
    names: Sequence[str], z: Tensor, label: Tensor, fit: Sequence[int], measure: Sequence[int], method: Method = "platt"
) -> tuple[Calibration, dict[str, float]]:
    """A calibration from the judgements `fit`, and what it does to the judgements `measure`, which it has not seen.
    names, z, label: n judgements of any backend: item names, `Verdicts.evidence` (NaN: missing), 1 for yes."""
    usable = [i for i in fit if bool(torch.isfinite(z[i]))]
    calibration = fit_calibration([names[i] for i in usable], z[usable], label[usable], method=method)
    index = list(measure)
    return calibration, measured([names[i] for i in index], z[index], label[index], calibration)
