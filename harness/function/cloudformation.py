"""CloudFormation templates as a tree that knows its lines, and the intrinsic functions that need no cloud.

Must not know what a Lambda function is. Why not a library: cfn-flip turns tags into plain mappings and loses the line
of every value; aws-sam-translator wants boto3 and a region, and rewrites functions into stacks. PyYAML's node graph
keeps the marks, and JSON is (but for tabs and surrogates) YAML.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.errors import InvalidFunction

PSEUDO_PARAMETERS: Mapping[str, str | list[str]] = {
    # The RIE's own: it fixes account and region of the ARN that a function sees.
    "AWS::AccountId": "012345678912",
    "AWS::Region": "us-east-1",
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::StackName": "local",
    "AWS::StackId": "arn:aws:cloudformation:us-east-1:012345678912:stack/local/00000000-0000-0000-0000-000000000000",
    "AWS::NotificationARNs": [],
}
"""What pseudo parameters stand for where there is no stack."""

_SURROGATES = re.compile(r"\\\\|\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)
_SUB_VARIABLE = re.compile(r"\$\{(!?)([^}]*)\}")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it: ten times as fast


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """``value`` as YAML types it, ``text`` as it was written."""

    value: Any
    text: str
    line: int


@dataclass(frozen=True, kw_only=True)
class Items:
    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, kw_only=True)
class Table:
    entries: Mapping[str, Node]
    line: int


@dataclass(frozen=True, kw_only=True)
class Intrinsic:
    """An intrinsic function by its long name (``Ref``, ``Fn::Sub``), not yet evaluated."""

    name: str
    argument: Node
    line: int


Node = Scalar | Items | Table | Intrinsic
Plain = Scalar | Items | Table


class Unresolved(Exception):
    """A value that only the cloud knows. ``line`` is where it stands, the message says why."""

    def __init__(self, reason: str, *, line: int) -> None:
        super().__init__(reason)
        self.line = line


class Template:
    """A template: its sections, and the values of what needs no cloud."""

    def __init__(self, root: Table) -> None:
        self.root = root

    @classmethod
    def read(cls, path: Path) -> Template:
        """The template of a file; `InvalidFunction` with file and line where it is none."""
        root = _parse(path)
        if not isinstance(root, Table):
            raise InvalidFunction(
                f"{path}:1: this is no template: it holds no mapping", remedy="a template has Resources"
            )
        return cls(root)

    def section(self, name: str) -> Mapping[str, Node]:
        """A top-level section such as Resources; empty where there is none."""
        found = self.root.entries.get(name)
        return found.entries if isinstance(found, Table) else {}

    def reduce(self, node: Node) -> Plain | None:
        """The node without intrinsic functions; None for ``AWS::NoValue``.

        Raises:
            Unresolved: something in it cannot be known without the cloud.
        """
        match node:
            case Scalar():
                return node
            case Items():
                reduced = [self.reduce(item) for item in node.items]
                return replace(node, items=tuple(item for item in reduced if item is not None))
            case Table():
                pairs = {key: self.reduce(value) for key, value in node.entries.items()}
                return replace(node, entries={key: value for key, value in pairs.items() if value is not None})
            case Intrinsic():
                return self._evaluate(node)

    def _evaluate(self, node: Intrinsic) -> Plain | None:
        match node.name:
            case "Ref":
                return self._ref(_word(node.argument, "Ref"), node.line)
            case "Fn::Sub":
                return self._sub(node)
            case "Fn::Join":
                return self._join(node)
            case "Fn::FindInMap":
                return self._find_in_map(node)
        raise Unresolved(f"{node.name} needs a deployed stack", line=node.line)

    def text(self, node: Node) -> str | None:
        """The node as CloudFormation would hand it to a property of type string; None for ``AWS::NoValue``."""
        plain = self.reduce(node)
        return None if plain is None else plain_text(plain)

    def _ref(self, name: str, line: int) -> Plain | None:
        if name == "AWS::NoValue":
            return None
        if name in PSEUDO_PARAMETERS:
            return _made(PSEUDO_PARAMETERS[name], line)
        parameter = self.section("Parameters").get(name)
        if parameter is not None:
            return _default(name, parameter, line)
        if name in self.section("Resources"):
            raise Unresolved(f"{name} is a resource, and what it is called is known once it is deployed", line=line)
        raise Unresolved(f"{name} is neither a parameter nor a resource of this template", line=line)

    def _sub(self, node: Intrinsic) -> Scalar:
        argument, own = node.argument, {}
        if isinstance(argument, Items):
            if len(argument.items) != 2 or not isinstance(argument.items[1], Table):
                raise Unresolved("Fn::Sub takes a text, or a list of a text and a mapping", line=node.line)
            own = dict(argument.items[1].entries)
            argument = argument.items[0]
        pattern = _word(argument, "Fn::Sub")

        def value(found: re.Match[str]) -> str:
            literal, name = found[1], found[2].strip()
            if literal:  # ${!Name} is how a template writes ${Name} itself
                return "${" + found[2] + "}"
            if name in own:
                return plain_text(self._wanted(own[name]))
            if "." in name:
                raise Unresolved(f"${{{name}}} is an attribute of a resource", line=node.line)
            return plain_text(self._wanted(Intrinsic(name="Ref", argument=_made(name, node.line), line=node.line)))

        return _made_text(_SUB_VARIABLE.sub(value, pattern), node.line)

    def _join(self, node: Intrinsic) -> Scalar:
        if not isinstance(node.argument, Items) or len(node.argument.items) != 2:
            raise Unresolved("Fn::Join takes a list of a delimiter and a list", line=node.line)
        delimiter, parts = node.argument.items
        listed = self._wanted(parts)
        if not isinstance(listed, Items):
            raise Unresolved("Fn::Join takes a list of a delimiter and a list", line=node.line)
        texts = [plain_text(item) for item in listed.items if not isinstance(item, Intrinsic)]
        return _made_text(_word(delimiter, "Fn::Join").join(texts), node.line)

    def _find_in_map(self, node: Intrinsic) -> Plain:
        if not isinstance(node.argument, Items) or len(node.argument.items) != 3:
            raise Unresolved("Fn::FindInMap takes a map and two keys", line=node.line)
        keys = [plain_text(self._wanted(item)) for item in node.argument.items]
        found: Node | None = Table(entries=self.section("Mappings"), line=node.line)
        for key in keys:
            found = found.entries.get(key) if isinstance(found, Table) else None
        if found is None:
            raise Unresolved(f"Mappings has no {'.'.join(keys)}", line=node.line)
        return self._wanted(found)

    def _wanted(self, node: Node) -> Plain:
        plain = self.reduce(node)
        if plain is None:
            raise Unresolved("AWS::NoValue stands where a value is wanted", line=node.line)
        return plain


def plain_text(plain: Node) -> str:
    """The text of a scalar: booleans as CloudFormation writes them, all else as the template does."""
    if not isinstance(plain, Scalar):
        raise Unresolved("it is a list or a mapping where a text is wanted", line=plain.line)
    if plain.value is None:
        raise Unresolved("it has no value", line=plain.line)
    return str(plain.value).lower() if isinstance(plain.value, bool) else plain.text


def _default(name: str, parameter: Node, line: int) -> Plain:
    entries = parameter.entries if isinstance(parameter, Table) else {}
    kind = entries.get("Type")
    type_name = kind.text if isinstance(kind, Scalar) else "String"
    if type_name.startswith("AWS::SSM::Parameter::Value"):
        raise Unresolved(f"parameter {name} is looked up in the Parameter Store", line=line)
    default = entries.get("Default")
    if not isinstance(default, Scalar) or default.value is None:
        raise Unresolved(f"parameter {name} has no Default", line=line)
    if type_name == "CommaDelimitedList" or type_name.startswith("List<"):
        return _made([part.strip() for part in default.text.split(",")], line)
    if type_name == "Number":
        return replace(_made_text(default.text, line), value=_number(default.text, name, line))
    return _made_text(plain_text(default), line)


def _number(text: str, name: str, line: int) -> int | float:
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError as error:
        raise Unresolved(f"parameter {name} is a Number, and its Default is {text!r}", line=line) from error


def _word(node: Node, name: str) -> str:
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        raise Unresolved(f"{name} takes a text here", line=node.line)
    return node.value


def _made_text(text: str, line: int) -> Scalar:
    return Scalar(value=text, text=text, line=line)


def _made(value: str | list[str], line: int) -> Scalar | Items:
    if isinstance(value, str):
        return _made_text(value, line)
    return Items(items=tuple(_made_text(item, line) for item in value), line=line)


def _parse(path: Path) -> Node:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidFunction(
            f"{path} cannot be read: {error.strerror}", remedy="check the path and its modes"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidFunction(f"{path} is not UTF-8 text (byte {error.start})", remedy="save it as UTF-8") from error
    if path.suffix.lower() == ".json":
        text = _as_yaml(text)
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            return _Tree(loader).convert(root, None) if root is not None else _made_text("", 1)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise InvalidFunction(
            f"{path}:{line}: {error.problem or error.context}", remedy="correct the template there"
        ) from error
    except yaml.YAMLError as error:
        raise InvalidFunction(f"{path}: {error}", remedy="correct the template") from error
    except RecursionError as error:
        raise InvalidFunction(f"{path}: nested too deeply", remedy="correct the template") from error


class _Tree:
    """Turns the node graph into our tree. Aliases share a node, so each is converted once."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.done: dict[int, Node] = {}
        self.open: set[int] = set()

    def convert(self, node: yaml.Node, line: int | None) -> Node:
        """``line`` is that of the key, which is where a reader looks; None where there is no key."""
        at = line if line is not None else node.start_mark.line + 1
        known = self.done.get(id(node))
        if known is not None:
            return replace(known, line=at)
        if id(node) in self.open:
            raise yaml.MarkedYAMLError(problem="an alias that holds itself", problem_mark=node.start_mark)
        self.open.add(id(node))
        made = self._convert(node, at)
        self.open.discard(id(node))
        self.done[id(node)] = made
        return made

    def _convert(self, node: yaml.Node, line: int) -> Node:
        if node.tag.startswith("!") and len(node.tag) > 1:
            name = node.tag[1:]
            plain = self._argument(node, line)
            if name == "GetAtt" and isinstance(plain, Scalar):
                plain = _made(plain.text.split("."), line)
            return Intrinsic(name=name if name in {"Ref", "Condition"} else f"Fn::{name}", argument=plain, line=line)
        made = self._argument(node, line)
        if isinstance(made, Table) and len(made.entries) == 1:
            (key, argument), *_ = made.entries.items()
            if key == "Ref" or key.startswith("Fn::"):
                return Intrinsic(name=key, argument=argument, line=line)
        return made

    def _argument(self, node: yaml.Node, line: int) -> Scalar | Items | Table:
        if isinstance(node, yaml.MappingNode):
            self.loader.flatten_mapping(node)  # merge keys (<<), which SAM CLI accepts
            entries = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(problem="a key that is no text", problem_mark=key.start_mark)
                entries[key.value] = self.convert(value, key.start_mark.line + 1)
            return Table(entries=entries, line=line)
        if isinstance(node, yaml.SequenceNode):
            return Items(items=tuple(self.convert(item, None) for item in node.value), line=line)
        return Scalar(value=self._value(node), text=str(node.value), line=line)

    def _value(self, node: yaml.Node) -> Any:
        if node.tag.rpartition(":")[2] in {"int", "float", "bool", "null"}:
            try:
                return self.loader.construct_object(node)
            except (ValueError, LookupError, TypeError) as error:  # a tag such as !!int that the text does not bear out
                problem = f"{node.value!r} is not what its tag says"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from error
        return str(node.value)


def _as_yaml(text: str) -> str:
    """JSON as YAML takes it, line by line the same: no tabs, and one character for each pair of surrogates."""

    def pair(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        return bytes.fromhex(found[1] + found[2]).decode("utf-16-be")

    # No text in JSON holds a raw tab, so these are indentation. An escaped backslash is passed over as it is.
    return _SURROGATES.sub(pair, text.replace("\t", " "))
