"""Fill a template: YAML whose `${name}` values are replaced by data, never by text that is parsed again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

_WHOLE = re.compile(r"\$\{(\w+)\}")


def fill(template: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A template of `cluster/templates` with its values.

    A value that is `${name}` as a whole becomes the datum, whatever its type; `None` removes the key. Inside longer
    text `${name}` becomes the datum's text.

    Args:
        template: file name, without `.yaml`.
        values: a datum for each name in the template.

    Returns:
        Plain data that shares nothing with `values`' containers or between its own parts, so that it is written
        without YAML aliases.
    """
    text = (files("cluster") / "templates" / f"{template}.yaml").read_text(encoding="utf-8")
    filled = _filled(yaml.safe_load(text), values)
    assert isinstance(filled, dict)
    return filled


def as_yaml(*documents: Mapping[str, Any]) -> str:
    """Documents as one YAML file."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(part, Mapping):
        filled = {key: _filled(value, values) for key, value in part.items()}
        return {key: value for key, value in filled.items() if value is not None}
    if isinstance(part, list):
        return [_filled(value, values) for value in part]
    if not isinstance(part, str):
        return part
    whole = _WHOLE.fullmatch(part)
    if whole:
        return _copied(values[whole[1]])
    return _WHOLE.sub(lambda match: str(values[match[1]]), part)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Plain(yaml.SafeDumper):
    """Text of several lines as a block, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)
