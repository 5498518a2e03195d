"""The reference network at the student's input."""

from __future__ import annotations

from specs.model import ModelSpec
from strategies.catalog import facts_of, takes_image_size
from strategies.facts import ModelFacts


def at_input_of(student: ModelFacts, baseline: ModelSpec, input_size: int) -> ModelSpec:
    """The baseline with the student's input size, channels and classes; random weights, as they cost the same.

    The patch size follows a rule, unless the baseline's `args` give one. At its own input size or above, the baseline
    keeps its own. On smaller images its own would leave a handful of tokens, or none, and any student would look slow
    beside it: there it takes the student's patch size, so that both see the same grid; if the student has none, the
    size that keeps the baseline's own number of patches, as nearly as divisors of the input allow.

    Raises:
        ValueError: if timm has no such network.
    """
    own = facts_of(ModelSpec(model=baseline.model))
    args = {**baseline.args, "in_chans": student.in_chans, "num_classes": student.num_classes}
    if takes_image_size(baseline.model):
        args["img_size"] = input_size
    if own.patch_size and "patch_size" not in args and input_size < own.image_size:
        args["patch_size"] = student.patch_size or _same_grid(own, input_size)
    return ModelSpec(model=baseline.model, args=args)


def _same_grid(own: ModelFacts, input_size: int) -> int:
    """The patch size that cuts the input most nearly into as many patches a side as the network's own."""
    divisors = [n for n in range(1, input_size + 1) if input_size % n == 0]
    return min(divisors, key=lambda patch: abs(input_size // patch - own.grid))
