"""Counts of outcomes against loops that were written from the definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from orchestrator.training.evaluate import Counter
from orchestrator.training.outcomes import NUM_BINS, Outcomes

C = 7
NAMES = tuple("abcdefg")


def some_answers(num=400, seed=0):
    noise = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C - 1, (num,), generator=noise)  # none of the last class
    logits = 2 * torch.randn(num, C, generator=noise)
    logits[torch.arange(num), labels] += 1.5
    return logits, labels


def counted(logits, labels, batch=64):
    counter = Counter(C, torch.device("cpu"))
    for some in torch.arange(len(labels)).split(batch):
        counter.add(logits[some], labels[some])
    return counter


def ece_by_loops(logits, labels):
    """Guo et al. 2017: images sorted into 15 bins of confidence, ((m - 1)/15, m/15], one after the other."""
    bins = [[] for _ in range(15)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        exponentials = [math.exp(x - max(row)) for x in row]
        confidence = max(exponentials) / sum(exponentials)
        (m,) = [m for m in range(15) if m / 15 < confidence <= (m + 1) / 15]
        bins[m].append((confidence, row.index(max(row)) == label))
    error = 0.0
    for members in bins:
        if members:
            accuracy = sum(right for _, right in members) / len(members)
            mean = sum(confidence for confidence, _ in members) / len(members)
            error += len(members) / len(labels) * abs(accuracy - mean)
    return 100 * error


def test_counts_are_those_of_a_loop():
    logits, labels = some_answers()
    counter = counted(logits, labels)
    found = counter.outcomes(NAMES)
    expected = np.zeros((C, C), dtype=int)
    top5, loss = 0, 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        ranked = sorted(range(C), key=lambda c: -row[c])
        expected[label, ranked[0]] += 1
        top5 += label in ranked[:5]
        loss -= row[label] - math.log(sum(math.exp(x) for x in row))
    assert np.array_equal(found.confusion, expected)
    assert found.num_images == counter.num_images == 400
    assert counter.top5_hits == top5
    assert counter.loss_sum == pytest.approx(loss)
    assert found.top1 == 100 * sum(expected[i, i] for i in range(C)) / 400
    by_class = found.top1_by_class()
    assert by_class.pop("g") is None, "it has no images"
    assert by_class == {NAMES[c]: pytest.approx(100 * expected[c, c] / expected[c].sum()) for c in range(C - 1)}
    assert found.worst_class()[1] == min(by_class.values())
    assert by_class[found.worst_class()[0]] == found.worst_class()[1]


def test_calibration_error_is_that_of_the_definition():
    logits, labels = some_answers()
    found = counted(logits, labels).outcomes(NAMES)
    assert found.ece == pytest.approx(ece_by_loops(logits, labels), rel=1e-9)
    assert found.ece > 1
    assert found.bins[:, 0].sum() == 400
    # Twice as sure is worse calibrated, and no other answer is given.
    surer = counted(3 * logits, labels).outcomes(NAMES)
    assert surer.ece == pytest.approx(ece_by_loops(3 * logits, labels), rel=1e-9)
    assert surer.ece > found.ece
    assert surer.top1 == found.top1


def test_what_lies_on_an_edge_belongs_to_the_lower_bin():
    """Uniform answers over C classes have confidence 1/C; over 15 classes that is the edge of the first bin."""
    counter = Counter(15, torch.device("cpu"))
    counter.add(torch.zeros(3, 15), torch.tensor([0, 1, 2]))
    counter.add(torch.full((1, 15), -200.0).index_fill(1, torch.tensor([4]), 200.0), torch.tensor([4]))
    bins = counter.outcomes(tuple(map(str, range(15)))).bins
    assert bins[0].tolist()[::2] == [3, pytest.approx(3 / 15)]  # which of equal logits is first is nobody's promise
    assert bins[-1].tolist() == [1, 1, 1]
    assert bins[1:-1].sum() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_images_without_an_answer_are_counted(bad):
    logits, labels = some_answers(20)
    logits[3, 2] = logits[17, 0] = logits[17, 1] = bad
    counter = counted(logits, labels, batch=8)
    assert (counter.num_unanswered, counter.num_images) == (2, 20)


def test_outcomes_come_back_from_text():
    logits, labels = some_answers()
    found = counted(logits, labels).outcomes(NAMES)
    again = Outcomes.from_json(found.to_json())
    assert np.array_equal(again.confusion, found.confusion)
    assert np.array_equal(again.bins, found.bins)
    assert again.classes == NAMES
    content = json.loads(found.to_json())
    assert content["num_images"] == sum(images for _, _, images in content["confusion"]) == 400
    assert len(content["calibration"]) == NUM_BINS
    with pytest.raises(ValueError, match="class 9 of 7"):
        Outcomes.from_json(json.dumps(content | {"confusion": [[0, 9, 1]]}))
