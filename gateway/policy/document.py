"""A YAML text as plain values with the line of every key, and strict conversion that collects all problems instead of
stopping at the first.

Booleans are `true` and `false` only, as in YAML 1.2: `log: off` is a word. Knows nothing about presets or files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, Final, get_args, get_origin

import msgspec
import yaml
from yaml.constructor import SafeConstructor

Path = tuple[str | int, ...]

MAX_DEPTH: Final = 32
MAX_NODES: Final = 200_000


class Problem(msgspec.Struct, frozen=True, order=True):
    """One thing wrong with a document: the line (from 1), the dotted key, and what is wrong with it."""

    line: int
    key: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.key}: {self.message}" if self.key else f"line {self.line}: {self.message}"


class Document:
    """Values, lines and problems of one text.

    `report` adds a problem at a key's line, or at the nearest parent's that has one.
    """

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self._lines: dict[Path, int] = {}
        self._nodes = 0
        self._scalars = SafeConstructor()  # remembers every node it has seen, so it must not outlive this text
        self.value: Any = None
        try:
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = mark.line + 1 if mark else 1
            self.problems.append(Problem(line, "", f"not valid YAML: {error.problem or error}"))
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self.problems.append(Problem(line, "", f"not valid YAML: the character {error.character!r} is not allowed"))
        except RecursionError:
            self.problems.append(Problem(1, "", f"nests deeper than {MAX_DEPTH} levels"))
        else:
            self.value = None if node is None else self._plain(node, ())

    def report(self, path: Path, message: str) -> None:
        self.problems.append(Problem(self.line(path), ".".join(map(str, path)), message))

    def line(self, path: Path) -> int:
        """The line of the key at `path`, or of its nearest parent."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def _plain(self, node: yaml.Node, path: Path) -> Any:
        """The value of a node. Aliases may repeat a part of the document, but not itself and not without end."""
        self._nodes += 1
        if len(path) > MAX_DEPTH or self._nodes > MAX_NODES:
            if self._nodes <= MAX_NODES + 1:
                self.report(path[:1], f"nests deeper than {MAX_DEPTH} levels or holds over {MAX_NODES} values")
            self._nodes += MAX_NODES
            return None
        try:
            if node.tag not in _TAGS:
                raise ValueError(f"the tag {node.tag} means nothing here")
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                for index, item in enumerate(node.value):
                    self._lines[(*path, index)] = item.start_mark.line + 1
                return [self._plain(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._scalars.construct_object(node)
        except (KeyError, ValueError) as error:  # an explicit tag on a text that is nothing of the kind
            self.problems.append(Problem(node.start_mark.line + 1, ".".join(map(str, path)), f"not valid: {error}"))
            return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(line, ".".join(map(str, path)), "a key must be a word"))
                continue
            key = key_node.value
            here = (*path, key)
            if key in result:
                first = self._lines[here]
                self.problems.append(Problem(line, ".".join(map(str, here)), f"appears twice (first on line {first})"))
                continue
            self._lines[here] = line
            result[key] = self._plain(value_node, here)
        return result

    def convert(self, value: Any, kind: Any, path: Path = ()) -> Any:
        """`value` as `kind` (a struct, `dict[str, X]` or anything msgspec converts), or None after reporting what is
        wrong.

        A struct comes back only if all of its fields are right; the other problems below it are reported all the same.
        """
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(value, kind, path)
        if get_origin(kind) is dict and isinstance(value, dict):
            inner = get_args(kind)[1]
            items = {name: self.convert(item, inner, (*path, name)) for name, item in value.items()}
            return items if inner is Any else {name: item for name, item in items.items() if item is not None}
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            self.report(path, str(error).replace("`", ""))
            return None

    def _struct(self, value: Any, kind: type[msgspec.Struct], path: Path) -> Any:
        if not isinstance(value, dict):
            self.report(path, f"expected a mapping, got {value!r}")
            return None
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        before = len(self.problems)
        for name in value.keys() - fields.keys():
            self.report((*path, name), f"unknown key{suggest(name, fields)}")
        for name, field in fields.items():
            if name not in value and field.required:
                self.report(path, f"the key {name!r} is missing")
        known: dict[str, Any] = {
            fields[name].name: self.convert(item, _plain_kind(fields[name].type, item), (*path, name))
            for name, item in value.items()
            if name in fields
        }
        return kind(**known) if len(self.problems) == before else None


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'top_p'?` or the list of what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(names)}"


def _plain_kind(kind: Any, item: Any) -> Any:
    """`X | None` as X where there is a value, so that problems inside X keep their own lines."""
    options = [option for option in get_args(kind) if option is not type(None)]
    optional = len(options) == 1 and type(None) in get_args(kind) and item is not None
    return options[0] if optional else kind


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2's core schema: no `yes`, `off`, dates, sexagesimals or octals by a leading zero."""


_TAGS: Final = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$|^[-+]?\.inf$|^\.nan$"
    ),
    list("-+0123456789."),
)
