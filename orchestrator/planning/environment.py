"""The part of the environment that numbers depend on; read from package metadata, without importing the packages."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from orchestrator.errors import PlanError
from specs.measurement import MeasurementSpec
from specs.resources import ResourcesSpec

NUMERIC_PACKAGES = ("torch", "torchvision", "timm")


def training_device(resources: ResourcesSpec) -> Literal["cpu", "cuda"]:
    """Kind of device that stages train on: a GPU if the spec asks for one."""
    return "cuda" if resources.gpus_per_worker > 0 else "cpu"


def numerics(device: str) -> dict[str, str]:
    """Versions and device type that the numbers of a stage depend on."""
    return {**{package: package_version(package) for package in NUMERIC_PACKAGES}, "device": device}


def resolved(measurement: MeasurementSpec, resources: ResourcesSpec) -> MeasurementSpec:
    """Measurement conditions with `auto` and `null` filled in from the resources."""
    device = training_device(resources) if measurement.device == "auto" else measurement.device
    threads = resources.cpus_per_worker if measurement.threads is None else measurement.threads
    return measurement.model_copy(update={"device": device, "threads": threads})


@cache
def package_version(package: str) -> str:
    """Release of an installed package, without importing it.

    Raises:
        PlanError: if it is not installed.
    """
    try:
        # `2.14.1+cpu` and `2.14.1+cu130` are the same release; the device type stands apart.
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        raise PlanError(f"the package `{package}` is not installed. Install slimvit with its dependencies.") from None
