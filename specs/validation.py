"""Raw data to a typed experiment, field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from specs.assign import assign, value_at
from specs.expand import UnsetVariable, expand, path_fields, variables
from specs.experiment import Experiment
from specs.measurement import MeasurementSpec
from specs.problems import Locate, Problem, SpecProblems, dotted, problem_at
from specs.secrets import secret_in, secret_name, strings
from specs.strategy import RESOLVER_KEY, AnyStrategy, Resolver, StrategyConfig
from specs.translate import translate


def parse(data: Mapping[str, Any], resolver: Resolver, locate: Locate) -> tuple[Experiment | None, list[Problem]]:
    """Refuse secrets, expand `~` and `${VARIABLE}` in paths, then validate every field.

    Returns:
        The experiment, or `None` if a field is wrong; and all problems.
    """
    secrets = list(secret_problems(data, locate))
    problems: list[Problem] = []
    for path in path_fields(data):
        try:
            data = assign(data, dotted(path), expand(value_at(data, path)))
        except UnsetVariable as error:
            problems.append(problem_at(locate(path), path, str(error), nearest=error.nearest, way_out=error.way_out))
    secrets += secret_problems(data, locate)  # what the variables brought in
    if secrets:  # the other checks quote what they refuse
        return None, problems + secrets
    try:
        # Through JSON, so that strict validation takes what YAML can say: lists for tuples and sets.
        experiment = Experiment.model_validate_json(json.dumps(data), context={RESOLVER_KEY: resolver})
    except ValidationError as error:
        return None, problems + translate(error, data, resolver, locate)
    return experiment, problems


def secret_problems(data: Mapping[str, Any], locate: Locate) -> Iterator[Problem]:
    """Texts of a spec that look like secrets, and variables that hold some. A spec is kept, shown and recorded."""
    way_out = (
        "Secrets come from the environment or the cloud's own chain: MLFLOW_TRACKING_USERNAME and "
        "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, for MLflow; AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, `~/.aws` or a role for buckets."
    )
    for path, text in strings(data):
        found = secret_in(text)
        if found is not None:
            message = f"holds what looks like {found}; a spec holds no secrets"
            yield problem_at(locate(path), path, message, way_out=way_out)
    for path in path_fields(data):
        for variable in variables(value_at(data, path)):
            if secret_name(variable):
                message = f"fills in `{variable}`, which by its name is a secret; a spec holds none"
                yield problem_at(locate(path), path, message, way_out=way_out)


def parse_strategy(data: Mapping[str, Any], resolver: Resolver, locate: Locate) -> StrategyConfig:
    """One entry of a `strategies` list by itself.

    Raises:
        SpecProblems: with every problem found.
    """
    options = _parse_alone(AnyStrategy, StrategyConfig, data, resolver, locate)
    assert isinstance(options, StrategyConfig)
    return options


def parse_measurement(data: Mapping[str, Any], locate: Locate) -> MeasurementSpec:
    """Conditions of measurement by themselves.

    Raises:
        SpecProblems: with every problem found.
    """
    conditions = _parse_alone(MeasurementSpec, MeasurementSpec, data, _no_strategies, locate)
    assert isinstance(conditions, MeasurementSpec)
    return conditions


def _no_strategies(name: str) -> type[StrategyConfig]:
    raise AssertionError(f"conditions of measurement hold no strategies, so nobody asks for `{name}`")


def _parse_alone(kind: Any, top: Any, data: Mapping[str, Any], resolver: Resolver, locate: Locate) -> Any:
    """Validate a part of a spec that stands outside one; `top` is the type in which its keys are looked up."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(data), context={RESOLVER_KEY: resolver})
    except ValidationError as error:
        raise SpecProblems(translate(error, data, resolver, locate, top)) from error
