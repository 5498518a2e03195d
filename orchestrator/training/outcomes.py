"""What the answers to labelled images were, as counts: the confusion matrix, and calibration in bins of confidence.

Counts add up over workers exactly, and every accuracy is a ratio of them. No torch here: reports read this too.

Shapes: C classes, M bins.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
"""M; the number in Guo et al. 2017 (arXiv:1706.04599), with which published errors are computed."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Counts over a set of images, each image once."""

    classes: tuple[str, ...]
    """Name of each class."""
    confusion: NDArray[np.int64]
    """Images by class (rows) and first prediction (columns) [C, C]."""
    bins: NDArray[np.float64]
    """Images, those of them predicted rightly, and the sum of their confidences, by bin of confidence [M, 3]."""

    @property
    def num_images(self) -> int:
        """All images."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of right first predictions in percent."""
        return 100 * int(self.confusion.trace()) / self.num_images

    @property
    def ece(self) -> float:
        """Expected calibration error in percent: Σ over bins of (images / all images) · |hit rate − mean confidence|.

        Source: arXiv:1706.04599, equations 2 and 3, with equally wide bins ((m − 1)/M, m/M].
        """
        _, hits, confidence = self.bins.T
        return float(100 * np.abs(hits - confidence).sum() / self.num_images)

    def top1_by_class(self) -> dict[str, float | None]:
        """Class → share of its images predicted rightly in percent; `None` for a class without images."""
        images, hits = self.confusion.sum(axis=1), self.confusion.diagonal()
        return {
            name: 100 * int(h) / int(n) if n else None for name, n, h in zip(self.classes, images, hits, strict=True)
        }

    def worst_class(self) -> tuple[str, float]:
        """The class that is recognised worst, of those with images, and its top-1 in percent; the first of equals."""
        known = {name: share for name, share in self.top1_by_class().items() if share is not None}
        name = min(known, key=known.__getitem__)
        return name, known[name]

    def to_json(self) -> str:
        """As text; the matrix as `[class, prediction, images]` where it is not 0: with 1,000 classes, most is."""
        rows, columns = np.nonzero(self.confusion)
        entries = np.stack([rows, columns, self.confusion[rows, columns]], axis=1).tolist()
        bins = [{"images": int(n), "hits": int(h), "confidence": c} for n, h, c in self.bins.tolist()]
        content = {
            "num_classes": len(self.classes),
            "classes": list(self.classes),
            "num_images": self.num_images,
            "confusion": entries,
            "calibration": bins,
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Outcomes:
        """What `to_json` wrote.

        Raises:
            ValueError, KeyError, TypeError: if it is anything else.
        """
        content: dict[str, Any] = json.loads(text)
        classes = tuple(content["classes"])
        confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
        for label, prediction, images in content["confusion"]:
            if not (0 <= label < len(classes) and 0 <= prediction < len(classes)):
                raise ValueError(f"class {max(label, prediction)} of {len(classes)}")
            confusion[label, prediction] = images
        bins = [[entry["images"], entry["hits"], entry["confidence"]] for entry in content["calibration"]]
        return cls(classes, confusion, np.array(bins, dtype=np.float64).reshape(-1, 3))
