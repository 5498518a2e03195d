"""YAML text to values that know their file and line.

The dialect is YAML 1.2's core schema (`1e-3` is a number; `on`, `yes` and dates are text), restricted to what JSON can
say: keys are text, numbers are finite and fit 64 bits, each key occurs once. Anchors and aliases work; `<<` does not,
`extends` is there for that. The tag `!replace` marks a mapping or list that `extends` must not merge.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import yaml

from specs.problems import Location, Problem, SpecPath, nearest, problem_at

Scalar: TypeAlias = "str | int | float | bool | None"
Value: TypeAlias = "Scalar | dict[str, Value] | list[Value]"
"""What JSON can say."""

MAX_DEPTH = 40
MAX_NODES = 50_000
"""Bounds on what aliases can expand to; real specs stay a hundred times below."""


@dataclass(frozen=True)
class Node:
    """A value and the place where it is written (for an entry of a mapping: the place of its key)."""

    value: Scalar | dict[str, Node] | list[Node]
    location: Location
    replace: bool = False
    """Tagged `!replace`: takes the place of what it extends, unmerged."""


def plain(node: Node) -> Value:
    """The bare value, without places."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def find(node: Node, path: SpecPath) -> Location:
    """Place of the value at a path, or of its nearest ancestor that is written down."""
    for item in path:
        if isinstance(node.value, dict) and item in node.value:
            node = node.value[str(item)]
        elif isinstance(node.value, list) and isinstance(item, int) and item < len(node.value):
            node = node.value[item]
        else:
            break
    return node.location


class _Loader(yaml.SafeLoader):
    """Safe loader with the implicit types of YAML 1.2 instead of 1.1's."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")

for _tag, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern.pattern})$"), _first)

_HINTS = {
    "'\\t' that cannot start any token": "YAML is indented with spaces; replace the tab.",
    "mapping values are not allowed here": "Put text that contains `: ` into quotes, and check the indentation.",
    "could not find expected ':'": "A line of a mapping is `key: value`; a colon is missing here or just above.",
    "expected <block end>": "Check the indentation: entries of one mapping or list start in the same column.",
    "expected ',' or": "Close the bracket or brace, or put a comma between the entries.",
    "found undefined alias": "An alias `*name` needs an anchor `&name` above; quote text that starts with `*`.",
    "expected a single document": "A spec is one document; remove the `---` and what follows it, or use `extends`.",
    "'`' that cannot start any token": "Put text that starts with a backtick in quotes.",
    "'@' that cannot start any token": "Put text that starts with `@` in quotes.",
    "'%' that cannot start any token": "Put text that starts with `%` in quotes.",
}


def read_yaml(path: Path, problems: list[Problem]) -> Node | None:
    """Read a file; what is wrong with it is appended to `problems`.

    Returns:
        The top mapping, or `None` if there is none to go on with.
    """
    place = Location(str(path))
    try:
        raw = path.read_bytes()
    except IsADirectoryError:
        problems.append(problem_at(place, (), "is a folder", way_out="Name a YAML file."))
        return None
    except FileNotFoundError:
        problems.append(missing_file(path))
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        problems.append(
            problem_at(place, (), f"cannot be read: {reason}", way_out="Check the path and its permissions.")
        )
        return None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"is not UTF-8 text (byte 0x{raw[error.start]:02x})"
        problems.append(problem_at(Location(str(path), line), (), message, way_out="Save the file as UTF-8."))
        return None
    return parse_yaml(text, str(path), problems)


def missing_file(path: Path) -> Problem:
    """The problem of a file that does not exist, with the nearest name in its folder."""
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml"}]
    except OSError:
        return Problem(str(path), None, "", "does not exist, and neither does its folder", None, "Check the path.")
    near = nearest(path.name, siblings)
    return Problem(
        str(path), None, "", "does not exist", str(path.parent / near) if near else None, "Check the path of the spec."
    )


def parse_yaml(text: str, file: str, problems: list[Problem]) -> Node | None:
    """Parse a spec file's text; see `read_yaml`."""
    node = parse_value(text, file, problems)
    if node is None:
        return None
    if node.value is None:
        problems.append(
            Problem(
                file, None, "", "is empty", None, "Start with `name`, `data`, `student` and `stages`, or `extends`."
            )
        )
        return None
    if not isinstance(node.value, dict):
        kind = "a list" if isinstance(node.value, list) else "a single value"
        message = f"the file holds {kind}, but a spec is a mapping"
        problems.append(problem_at(node.location, (), message, way_out="Write `key: value` lines, first `name: …`."))
        return None
    return node


def parse_value(text: str, file: str, problems: list[Problem], *, lines: bool = True) -> Node | None:
    """Parse any YAML value.

    Args:
        file: name for locations.
        lines: whether locations carry line numbers (`--set` values have none).
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        hint = next((way for key, way in _HINTS.items() if key in what), "Check quotes, brackets and indentation.")
        line = mark.line + 1 if mark and lines else None
        problems.append(Problem(file, line, "", f"is not valid YAML: {what}", None, hint))
        return None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if lines else None
        problems.append(
            Problem(
                file, line, "", f"holds a character that YAML forbids (U+{error.character:04X})", None, "Remove it."
            )
        )
        return None
    except RecursionError:
        problems.append(Problem(file, None, "", "is nested too deeply", None, f"Use at most {MAX_DEPTH} levels."))
        return None
    if node is None:
        return Node(None, Location(file, 1 if lines else None))
    return _Builder(file, lines, problems).build(node, (), None)


class _Builder:
    """Turns composed YAML nodes into located values and collects what JSON cannot say."""

    def __init__(self, file: str, lines: bool, problems: list[Problem]) -> None:
        self.file, self.lines, self.problems = file, lines, problems
        self.num_nodes = 0
        self.open: list[yaml.Node] = []

    def place(self, node: yaml.Node) -> Location:
        return Location(self.file, node.start_mark.line + 1 if self.lines else None)

    def refuse(self, place: Location, path: SpecPath, message: str, way_out: str) -> None:
        self.problems.append(problem_at(place, path, message, way_out=way_out))

    def build(self, node: yaml.Node, path: SpecPath, place: Location | None) -> Node:
        """Value of a node; `place` is its key's, if it has one. What is refused becomes `None`, with a problem."""
        place = place or self.place(node)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES:
            if self.num_nodes == MAX_NODES + 1:
                self.refuse(place, path, f"aliases expand to more than {MAX_NODES:,} values", "Use fewer aliases.")
            return Node(None, place)
        if len(path) > MAX_DEPTH or any(node is other for other in self.open):
            self.refuse(place, path, "contains itself or is nested too deeply", f"Use at most {MAX_DEPTH} levels.")
            return Node(None, place)
        if isinstance(node, yaml.ScalarNode):
            return Node(self.scalar(node, path, place), place)
        replace = node.tag == "!replace"
        if not replace and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.refuse(place, path, f"has the tag `{_short(node.tag)}`", "Remove it; `!replace` is the only tag.")
        self.open.append(node)
        if isinstance(node, yaml.MappingNode):
            result = Node(self.mapping(node, path), place, replace)
        else:
            assert isinstance(node, yaml.SequenceNode)
            items = [self.build(child, (*path, i), None) for i, child in enumerate(node.value)]
            result = Node(items, place, replace)
        self.open.pop()
        return result

    def mapping(self, node: yaml.MappingNode, path: SpecPath) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for key_node, value_node in node.value:
            place = self.place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.refuse(place, path, "a key is a list or a mapping", "Keys are text.")
                continue
            key = key_node.value
            if key == "<<":
                self.refuse(place, path, "`<<` is not part of YAML 1.2", "Use `extends`, or repeat the keys.")
                continue
            self.text(key, path, place)
            if key in entries:
                first = entries[key].location.line
                where = f", first on line {first}" if first else ""
                self.refuse(place, (*path, key), f"the key `{key}` occurs twice{where}", "Keep one of them.")
                continue
            entries[key] = self.build(value_node, (*path, key), place)
        return entries

    def scalar(self, node: yaml.ScalarNode, path: SpecPath, place: Location) -> Scalar:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text: str = node.value
        if kind in ("str", "!"):
            return self.text(text, path, place)
        if kind == "null" and _NULL.fullmatch(text):
            return None
        if kind == "bool" and _BOOL.fullmatch(text):
            return text.lower() == "true"
        if kind == "int" and _INT.fullmatch(text):
            # 64 bits have at most 20 characters in any of the notations; longer ones need no parsing to be refused.
            number = int(text, 0 if text[:2] in ("0x", "0o") else 10) if len(text) <= 64 else 2**64
            if -(2**63) <= number < 2**63:
                return number
            self.refuse(place, path, "the number does not fit 64 bits", "Use a smaller number.")
            return None
        if kind == "float" and _FLOAT.fullmatch(text):
            value = math.nan if text.lower().lstrip("+-") in (".inf", ".nan") else float(text)
            if math.isfinite(value):
                return value
            self.refuse(place, path, f"`{text}` is not a finite number", "Use a finite number.")
            return None
        self.refuse(place, path, f"has the tag `{_short(node.tag)}`", "Remove it; tags on values are not used.")
        return None

    def text(self, text: str, path: SpecPath, place: Location) -> str:
        if "\0" in text or any(0xD800 <= ord(character) <= 0xDFFF for character in text):
            self.refuse(place, path, "the text holds a NUL or half of a surrogate pair", "Remove that character.")
            return ""
        return text


def _short(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")
