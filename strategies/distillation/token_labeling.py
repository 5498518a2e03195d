"""Token labelling: every patch has a label of its own, which a teacher gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from specs.strategy import StrategyConfig
from strategies.api import DENSE_LOGITS, FINAL_TOKENS, TEACHER_DENSE_LOGITS, Claim, Claims, OptionError, Strategy
from strategies.facts import Facts

if TYPE_CHECKING:
    from torch import Tensor

    from strategies.backbone import Student
    from strategies.state import Output


class TokenLabelingConfig(StrategyConfig):
    """Options of `token_labeling`."""

    name: Literal["token_labeling"] = "token_labeling"
    """Always `token_labeling`."""

    top_k: PositiveInt = 5
    """Classes in each patch's label: those that the teacher finds likeliest there; at most the number of classes."""

    head: Literal["own", "shared"] = "own"
    """What classifies patches in training: a linear layer of their own, as published, or the network's classifier,
    which suits networks that average patches."""

    weight: float = Field(default=0.5, ge=0)
    """Weight of the term beside the task's cross-entropy, which keeps weight 1. 0 = no token labels."""


class TokenLabeling(Strategy[TokenLabelingConfig]):
    """loss = CE(student, label) + weight · mean over patches of CE(student's patch, its label).

    A patch's label is the softmax over the k classes that the teacher finds likeliest at its place: the teacher's
    classifier on the features there alone. Jiang et al. 2021 (LV-ViT), arXiv:2104.10858. There a strong teacher labels
    the whole image once, and crops are cut out of the label map; here the teacher sees the same augmented image as the
    student, and needs no maps on disk. Mixed images are labelled as they are mixed, so the paper's MixToken is not
    needed. (The authors' code also adds the best patch's answer in evaluation; this does not.)

    A teacher's grid of another size is resampled to the student's, bilinearly. The teacher may be any network whose
    classifier makes sense of single places: convolutional and hierarchical networks and Vision Transformers with
    average pooling; a class-token teacher never learned to classify patches. An own head is no part of the network as
    deployed.
    """

    kind = "distillation"
    paper = "Jiang et al. 2021, arXiv:2104.10858"
    neutral: ClassVar = {"weight": 0.0}
    examples = ({}, {"head": "shared", "top_k": 2, "weight": 1.0})
    deployed = False
    Config = TokenLabelingConfig

    def claims(self, facts: Facts) -> Claims:
        """Reads the student's final tokens or answers to each patch, and the teacher's answers to each place."""
        if self.config.top_k > facts.student.num_classes:
            raise OptionError(
                self.name,
                "top_k",
                f"{self.config.top_k} classes of {facts.student.num_classes}",
                f"1 to {facts.student.num_classes}",
                "Write a smaller number: 1 keeps the likeliest class alone.",
            )
        ours = FINAL_TOKENS if self.config.head == "own" else DENSE_LOGITS
        return Claims(needs=frozenset({Claim(ours), Claim(TEACHER_DENSE_LOGITS)}))

    def wrap(self, student: Student, facts: Facts) -> None:
        """Give the patches a head."""
        if self.config.head == "own":
            from strategies.distillation.patch_head import PatchHead

            head = PatchHead(student.model)
            student.extras[self.name] = head
            student.readouts[self.name] = head

    def losses(self, out: Output, teacher: Output | None, target: Tensor) -> dict[str, Tensor]:
        """One term, `tokens`."""
        from strategies.distillation.dense_labels import labelling_loss, token_labels
        from strategies.distillation.feature_distance import grid_size

        assert teacher is not None, "claims ask for a teacher"
        assert teacher.dense_logits is not None, "claims ask for answers to each place"
        answers = out.dense_logits if self.config.head == "shared" else out.readouts[self.name]["answers"]
        assert answers is not None, "claims ask for answers to each patch"
        labels = token_labels(teacher.dense_logits, grid_size(answers, 0), self.config.top_k)
        return {"tokens": labelling_loss(answers, labels)}

    def weights(self) -> dict[str, float]:
        """The task keeps weight 1."""
        return {"tokens": self.config.weight}
