"""Networks: the student, and whoever teaches it."""

from __future__ import annotations

from typing import Self

from pydantic import Field, JsonValue, NonNegativeInt, PositiveInt, model_validator

from specs.base import SpecModel


class ModelSpec(SpecModel):
    """A network from timm's registry."""

    model: str = Field(min_length=1)
    """Name in timm's registry, for example `vit_tiny_patch16_224` or `deit_small_patch16_224`."""

    args: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the timm constructor, for example `{img_size: 28, patch_size: 4, depth: 6}`.
    `num_classes` is set from the data; `img_size` defaults to `data.image_size`."""

    pretrained: bool = False
    """Start from timm's published weights (downloaded at the first use; needs internet or a filled cache)."""


class StoredSpec(SpecModel):
    """The teacher's answers are written once, and read from then on in place of the teacher."""

    top_k: PositiveInt = 10
    """Classes kept of each answer, the most probable ones; what the others have in sum is spread evenly over them.
    As many as there are classes = nothing is lost. 10 is usual for 1,000 classes, 100 for 22,000."""

    seed: NonNegativeInt = 0
    """Seed of what the images look like (augmentation, mixing), in place of the seeds of the stages that read the
    answers: so stages of several seeds share them."""


class FurtherTeacherSpec(SpecModel):
    """One teacher: exactly one of `stage`, `model` or `checkpoint` (a checkpoint needs no `model`)."""

    stage: str | None = None
    """Name of an earlier stage whose trained network teaches."""

    checkpoint: str | None = None
    """Folder of a slimvit checkpoint (`model.safetensors` and `model.json`), or a `.safetensors` file of timm weights
    (then `model` says which network they belong to)."""

    model: ModelSpec | None = None
    """A timm network of any family, usually with `pretrained: true`. Published weights see images normalised by their
    own mean and standard deviation (timm's `pretrained_cfg`), whatever `data.mean` and `data.std` are."""

    image_size: PositiveInt | None = None
    """Side in pixels that the student's images are resampled to for this teacher, on the device (bicubic, antialiased);
    `null` = the network's own: that of a trained network, `img_size` in the model's `args`, else the size that
    its weights were published for. Networks without a size of their own (convolutional ones) see `data.image_size`."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.stage is not None and (self.model is not None or self.checkpoint is not None):
            raise ValueError("`stage` excludes `model` and `checkpoint`; keep one source for the teacher")
        if self.stage is None and self.model is None and self.checkpoint is None:
            raise ValueError("a teacher needs one of `stage`, `checkpoint` or `model`; or write `teacher: null`")
        return self


class TeacherSpec(FurtherTeacherSpec):
    """Who teaches: one teacher, or this one and those of `also`."""

    also: list[FurtherTeacherSpec] = Field(default_factory=list)
    """Further teachers beside this one, for strategies that learn from several (`cross_inductive_bias`); the others
    learn from the first alone. Only teachers that a strategy needs are trained and run."""

    stored: StoredSpec | None = None
    """Write this teacher's logits to the artefact store once, and let the stage read them there; `null` = the teacher
    answers in every step anew. Only for strategies that read nothing of the teacher but its logits. `slimvit plan`
    shows the size. TinyViT, arXiv:2207.10666."""

    @model_validator(mode="after")
    def _stored_teaches_alone(self) -> Self:
        if self.stored is not None and self.also:
            raise ValueError("a `stored` teacher teaches alone; leave out `stored`, or `also`")
        return self

    @property
    def everyone(self) -> tuple[FurtherTeacherSpec, ...]:
        """The first teacher and the further ones, in order."""
        return (self, *self.also)


class InitSpec(SpecModel):
    """Where a stage's weights come from. With neither field: the model's own start (`pretrained` or random)."""

    stage: str | None = None
    """Name of an earlier stage to go on from; pruned shapes travel with it."""

    checkpoint: str | None = None
    """Folder of a slimvit checkpoint, or a `.safetensors` file with timm's keys."""

    @model_validator(mode="after")
    def _at_most_one(self) -> InitSpec:
        if self.stage is not None and self.checkpoint is not None:
            raise ValueError("`stage` and `checkpoint` exclude each other")
        return self
