"""Reads one function out of a SAM or CloudFormation template. Must not judge values: `model.judge` does.

What the harness has no use for (Policies, Events, VpcConfig, ...) is passed over. What it needs and cannot know without
a deployed stack is refused with file and line, unless the command line sets it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from harness.errors import InvalidFunction
from harness.function.cloudformation import (
    Intrinsic,
    Items,
    Node,
    Plain,
    Scalar,
    Table,
    Template,
    Unresolved,
    plain_text,
)
from harness.function.model import (
    Code,
    DirectoryCode,
    ImageCode,
    InlineCode,
    Overrides,
    Setting,
    Settings,
    name_from,
)

_SERVERLESS, _PLAIN = "AWS::Serverless::Function", "AWS::Lambda::Function"
_LAYER_CONTENT = {"AWS::Serverless::LayerVersion": "ContentUri", "AWS::Lambda::LayerVersion": "Content"}
_REMOTE = ("s3://", "http://", "https://")
_OPTIONS = {
    "runtime": "--runtime",
    "handler": "--handler",
    "memory_mb": "-m",
    "timeout_s": "--timeout",
    "image": "--image",
}


def read(path: Path, logical_id: str | None, overrides: Overrides) -> Settings:
    """The settings of one function of a template; ``logical_id`` may be None where there is only one.

    Raises:
        InvalidFunction: no such template or function, or a needed property that cannot be resolved.
    """
    template = Template.read(path)
    functions = {
        name: node
        for name, node in template.section("Resources").items()
        if isinstance(node, Table) and _type(node) in {_SERVERLESS, _PLAIN}
    }
    if not functions:
        raise InvalidFunction(f"{path} describes no function", remedy=f"its Resources need a {_SERVERLESS}")
    if logical_id is None and len(functions) == 1:
        logical_id = next(iter(functions))
    if not logical_id:
        raise InvalidFunction(
            f"{path} describes {len(functions)} functions: {', '.join(functions)}",
            remedy=f"name one of them, as in {path}:{next(iter(functions))}",
        )
    if logical_id not in functions:
        raise InvalidFunction(_no_such(path, logical_id, template), remedy=f"its functions are {', '.join(functions)}")
    return _Reader(path, template, logical_id, functions[logical_id], overrides).settings()


def _no_such(path: Path, logical_id: str, template: Template) -> str:
    resource = template.section("Resources").get(logical_id)
    if isinstance(resource, Table):
        return f"{path}:{resource.line}: {logical_id} is no function but a {_type(resource) or 'resource without Type'}"
    near = difflib.get_close_matches(logical_id, template.section("Resources"), n=1)
    return f"{path} has no function {logical_id!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _type(resource: Table) -> str:
    kind = resource.entries.get("Type")
    return kind.text if isinstance(kind, Scalar) else ""


def _table(node: Node | None) -> Mapping[str, Node]:
    return node.entries if isinstance(node, Table) else {}


def _merge(above: Node, own: Node) -> Node:
    """Globals under a resource's own, as SAM does it: mappings merged, lists joined, all else replaced.

    An intrinsic function counts as a single value [aws/serverless-application-model, docs/globals].
    """
    if isinstance(above, Table) and isinstance(own, Table):
        both = {
            key: _merge(above.entries[key], node) if key in above.entries else node for key, node in own.entries.items()
        }
        return replace(own, entries={**above.entries, **both})
    if isinstance(above, Items) and isinstance(own, Items):
        return replace(own, items=above.items + own.items)
    return own


class _Reader:
    """One function of one template."""

    def __init__(self, path: Path, template: Template, logical_id: str, resource: Table, overrides: Overrides) -> None:
        self.path, self.template, self.logical_id, self.overrides = path, template, logical_id, overrides
        self.resource = resource
        own: Node = resource.entries.get("Properties") or Table(entries={}, line=resource.line)
        if _type(resource) == _SERVERLESS:
            above = _table(template.section("Globals").get("Function"))
            own = _merge(Table(entries=above, line=own.line), own)
        self.properties = _table(own)

    def settings(self) -> Settings:
        found: Settings = {"name": Setting(value=name_from(self.logical_id), origin=self._at(self.resource.line))}
        self._put(found, "name", self._known("FunctionName"))
        self._put(found, "description", self._known("Description"))
        if self._package_type() == "Image":
            self._put(found, "handler", self._command())
        else:
            self._put(found, "runtime", self._text("Runtime", "runtime"))
            self._put(found, "handler", self._text("Handler", "handler"))
        for field, property_ in (("memory_mb", "MemorySize"), ("timeout_s", "Timeout")):
            self._put(found, field, self._whole(property_, self.properties.get(property_), field))
        self._put(found, "tmp_mb", self._tmp())
        self._put(found, "architecture", self._architecture())
        found["environment"] = self._environment()
        if not self.overrides.sets("layers"):
            self._put(found, "layers", self._layers())
        found["code"] = self._code(found.get("runtime"))
        return found

    @staticmethod
    def _put(found: Settings, field: str, setting: Setting | None) -> None:
        if setting is not None:
            found[field] = setting

    def _at(self, line: int) -> str:
        return f"{self.path}:{line}"

    def _refuse(self, what: str, error: Unresolved, field: str = "") -> InvalidFunction:
        option = f", or set it with {_OPTIONS[field]}" if field in _OPTIONS else ""
        return InvalidFunction(
            f"{self._at(error.line)}: {what} of {self.logical_id} cannot be resolved: {error}",
            remedy=f"write the value into the template, or give the parameter a Default{option}",
        )

    def _plain(self, property_: str, node: Node | None, field: str) -> Plain | None:
        """A property that the function cannot run without, unless the command line sets it."""
        if node is None or self.overrides.sets(field):
            return None
        try:
            return self.template.reduce(node)
        except Unresolved as error:
            raise self._refuse(property_, error, field) from error

    def _text(self, property_: str, field: str) -> Setting | None:
        plain = self._plain(property_, self.properties.get(property_), field)
        if plain is None:
            return None
        try:
            return Setting(value=plain_text(plain), origin=self._at(plain.line))
        except Unresolved as error:
            raise self._refuse(property_, error, field) from error

    def _texts(self, property_: str, plain: Plain) -> list[str]:
        """The texts of a list; none where it is no list."""
        try:
            return [plain_text(item) for item in plain.items] if isinstance(plain, Items) else []
        except Unresolved as error:
            raise self._refuse(property_, error) from error

    def _known(self, property_: str) -> Setting | None:
        """A property that the function runs without: its text, or nothing where only the cloud knows it."""
        node = self.properties.get(property_)
        try:
            text = None if node is None else self.template.text(node)
        except Unresolved:
            return None
        return None if node is None or text is None else Setting(value=text, origin=self._at(node.line))

    def _whole(self, property_: str, node: Node | None, field: str) -> Setting | None:
        plain = self._plain(property_, node, field)
        if plain is None:
            return None
        value = plain.value if isinstance(plain, Scalar) else None
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)  # CloudFormation takes numbers written as text
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        return Setting(value=value, origin=self._at(plain.line))

    def _tmp(self) -> Setting | None:
        storage = self.properties.get("EphemeralStorage")
        if isinstance(storage, Table):
            return self._whole("EphemeralStorage.Size", storage.entries.get("Size"), "tmp_mb")
        return self._whole("EphemeralStorage", storage, "tmp_mb")

    def _architecture(self) -> Setting | None:
        plain = self._plain("Architectures", self.properties.get("Architectures"), "architecture")
        if plain is None:
            return None
        names = self._texts("Architectures", plain)
        if len(names) != 1:
            listed = f" (here with those of Globals: {', '.join(names)})" if names else ""
            raise InvalidFunction(
                f"{self._at(plain.line)}: Architectures of {self.logical_id} is not a list of one{listed}",
                remedy="write Architectures: [x86_64] or [arm64], in one place",
            )
        return Setting(value=names[0], origin=self._at(plain.line))

    def _environment(self) -> Setting:
        environment = self.properties.get("Environment")
        variables = environment.entries.get("Variables") if isinstance(environment, Table) else environment
        if isinstance(variables, Intrinsic):
            error = Unresolved(f"{variables.name} stands for all of them", line=variables.line)
            raise self._refuse("Environment.Variables", error)
        found: dict[str, Setting] = {}
        lost: dict[str, Unresolved] = {}
        for name, node in _table(variables).items():
            if name in self.overrides.environment:
                continue
            try:
                text = self.template.text(node)
            except Unresolved as error:
                lost[name] = error
                continue
            if text is not None:
                found[name] = Setting(value=text, origin=self._at(node.line))
        if lost:
            each = "; ".join(f"{self._at(error.line)}: {name}: {error}" for name, error in lost.items())
            raise InvalidFunction(
                f"environment variables of {self.logical_id} cannot be resolved: {each}",
                remedy=f"set them with {' '.join(f'--env {name}=VALUE' for name in lost)}",
            )
        return Setting(value=found)

    def _local(self, property_: str, node: Node, what: str) -> Path:
        """The local path that a property names; refused where the content lies in the cloud."""
        try:
            plain = self.template.reduce(node)
        except Unresolved as error:
            raise self._refuse(property_, error) from error
        text = plain.text if isinstance(plain, Scalar) and isinstance(plain.value, str) else None
        if not text or text.startswith(_REMOTE) or text.startswith("arn:"):
            raise InvalidFunction(
                f"{self._at(node.line)}: {property_} of {self.logical_id} is not a local path"
                + (f": {text}" if text else ""),
                remedy=f"fetch {what} and name its directory or zip instead",
            )
        return self.path.parent / text

    def _layers(self) -> Setting | None:
        layers = self.properties.get("Layers")
        if layers is None:
            return None
        if not isinstance(layers, Items):
            raise self._refuse("Layers", Unresolved("it is no list", line=layers.line), "layers")
        found = []
        for item in layers.items:
            node, property_ = self._layer_content(item), "Layers"
            found.append(Setting(value=self._local(property_, node, "the layer"), origin=self._at(item.line)))
        return Setting(value=found, origin=self._at(layers.line))

    def _layer_content(self, item: Node) -> Node:
        """Where a layer's content is named: in the list itself, or in the layer resource that it refers to."""
        if isinstance(item, Intrinsic) and item.name == "Ref" and isinstance(item.argument, Scalar):
            resource = self.template.section("Resources").get(item.argument.text)
            if isinstance(resource, Table) and _type(resource) in _LAYER_CONTENT:
                content = _table(resource.entries.get("Properties")).get(_LAYER_CONTENT[_type(resource)])
                return content if content is not None else resource
        return item

    def _package_type(self) -> str:
        setting = self._known("PackageType")
        return str(setting.value) if setting is not None else "Zip"

    def _command(self) -> Setting | None:
        """The handler of a function that is an image: the one argument of its command, where the template sets it."""
        config = _table(self.properties.get("ImageConfig"))
        for name in ("EntryPoint", "WorkingDirectory"):
            if name in config:
                raise InvalidFunction(
                    f"{self._at(config[name].line)}: ImageConfig.{name} of {self.logical_id} is not supported",
                    remedy="write it into the image's Dockerfile",
                )
        if "Command" not in config:
            return None
        plain = self._plain("ImageConfig.Command", config["Command"], "handler")
        if plain is None:
            return None
        words = self._texts("ImageConfig.Command", plain)
        if len(words) != 1:
            raise InvalidFunction(
                f"{self._at(plain.line)}: ImageConfig.Command of {self.logical_id} is not a list of one handler",
                remedy="Lambda's images take exactly one argument, the handler; write the rest into the Dockerfile",
            )
        return Setting(value=words[0], origin=self._at(plain.line))

    def _code(self, runtime: Setting | None) -> Setting:
        if self._package_type() == "Image":
            return self._image()
        if _type(self.resource) == _SERVERLESS:
            inline, node, property_ = self.properties.get("InlineCode"), self.properties.get("CodeUri"), "CodeUri"
        else:
            node, property_ = self.properties.get("Code"), "Code"
            inline = _table(node).get("ZipFile")
        if inline is not None:
            return self._inline(inline, runtime)
        if node is None:
            raise InvalidFunction(
                f"{self._at(self.resource.line)}: {self.logical_id} has no {property_}",
                remedy=f"add {property_} with the directory or zip of the code, relative to the template",
            )
        code: Code = DirectoryCode(path=self._local(property_, node, "the code"))
        return Setting(value=code, origin=self._at(node.line))

    def _inline(self, node: Node, runtime: Setting | None) -> Setting:
        try:
            text = self.template.text(node) or ""
        except Unresolved as error:
            raise self._refuse("the inline code", error) from error
        name = self.overrides.runtime or (str(runtime.value) if runtime is not None else "")
        # The only two families for which Lambda takes code inline.
        suffix = {"n": ".js", "p": ".py"}.get(name[:1]) if name.startswith(("nodejs", "python")) else None
        if suffix is None:
            raise InvalidFunction(
                f"{self._at(node.line)}: Lambda takes no inline code for runtime {name or 'unknown'!r}",
                remedy="put the code into a directory and name it with CodeUri",
            )
        return Setting(value=InlineCode(text=text, file_name=f"index{suffix}"), origin=self._at(node.line))

    def _image(self) -> Setting:
        if self.overrides.image is not None:
            return Setting(value=ImageCode(reference=self.overrides.image))
        node = self.properties.get("ImageUri") or _table(self.properties.get("Code")).get("ImageUri")
        metadata = _table(self.resource.entries.get("Metadata"))
        if node is None and "Dockerfile" in metadata:
            tag = metadata.get("DockerTag")
            # What `sam build` calls the image that it makes of such a function.
            built = f"{self.logical_id.lower()}:{tag.text if isinstance(tag, Scalar) else 'latest'}"
            return Setting(value=ImageCode(reference=built), origin=self._at(metadata["Dockerfile"].line))
        if node is None:
            raise InvalidFunction(
                f"{self._at(self.resource.line)}: {self.logical_id} is an image and has no ImageUri",
                remedy="add ImageUri, or name the image with --image",
            )
        try:
            text = self.template.text(node)
        except Unresolved as error:
            raise self._refuse("ImageUri", error, "image") from error
        return Setting(value=ImageCode(reference=text or ""), origin=self._at(node.line))
