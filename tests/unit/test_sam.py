"""SAM and CloudFormation templates: what is read from them, and what is refused with its line."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InvalidFunction
from harness.function import DirectoryCode, Function, ImageCode, InlineCode, Overrides, ZipCode, load
from harness.function.cloudformation import PSEUDO_PARAMETERS

HEAD = """\
Parameters:
  Size: {Type: Number, Default: 512}
  Stage: {Type: String, Default: test}
  Nothing: {Type: String}
  Secret: {Type: "AWS::SSM::Parameter::Value<String>", Default: /path}
  Names: {Type: CommaDelimitedList, Default: "a, b"}
Mappings:
  ByStage:
    test: {Memory: 320}
Resources:
  Table: {Type: "AWS::DynamoDB::Table"}
  F:
    Type: AWS::Serverless::Function
    Properties:
      Runtime: python3.13
      Handler: app.handler
      CodeUri: src/
"""
FIRST_LINE = HEAD.count("\n") + 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("src", "layer", "other"):
        (tmp_path / name).mkdir()
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("app.py", "")
    return tmp_path


def template(folder: Path, text: str, name: str = "template.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def with_properties(folder: Path, properties: str, **overrides: Any) -> Function:
    """The function F with more properties, indented by six spaces."""
    text = HEAD + "".join(f"      {line}\n" for line in properties.splitlines())
    return load(template(folder, text) + ":F", Overrides(**overrides))


def refusal(folder: Path, properties: str, **overrides: Any) -> str:
    with pytest.raises(InvalidFunction) as caught:
        with_properties(folder, properties, **overrides)
    assert caught.value.remedy
    return f"{caught.value} | {caught.value.remedy}"


def test_a_serverless_function_with_globals_is_read_as_sam_does(folder: Path) -> None:
    source = template(
        folder,
        """
Globals:
  Function:
    Runtime: nodejs22.x
    MemorySize: 256
    Timeout: 20
    Layers: [layer]
    Environment:
      Variables: {A_: global, B_: global}
Resources:
  Orders:
    Type: AWS::Serverless::Function
    Properties:
      Handler: index.handler
      CodeUri: src
      MemorySize: 1024
      EphemeralStorage: {Size: 2048}
      Architectures: [arm64]
      Layers: [other]
      Environment:
        Variables: {B_: own, C_: own}
      Policies: [!Sub "${Unknown}"]
      Events: {Get: {Type: Api, Properties: {Path: /, Method: get, RestApiId: !Ref Nowhere}}}
""",
    )
    function = load(source)
    assert (function.name, function.runtime, function.handler) == ("Orders", "nodejs22.x", "index.handler")
    assert (function.memory_mb, function.timeout_s, function.tmp_mb) == (1024, 20, 2048)
    assert function.architecture == "arm64"
    assert function.code == DirectoryCode(path=folder / "src")
    assert function.layers == (folder / "layer", folder / "other")
    assert function.environment == {"A_": "global", "B_": "own", "C_": "own"}
    assert function.source == source


def test_a_plain_lambda_function_takes_no_globals(folder: Path) -> None:
    source = template(
        folder,
        """
Globals: {Function: {MemorySize: 1024}}
Resources:
  F:
    Type: AWS::Lambda::Function
    Properties: {Runtime: python3.13, Handler: a.b, Code: code.zip, FunctionName: named}
""",
    )
    function = load(source + ":F")
    assert (function.memory_mb, function.name) == (128, "named")
    assert function.code == ZipCode(path=folder / "code.zip")


def test_ref_and_sub_give_parameters_and_pseudo_parameters(folder: Path) -> None:
    function = with_properties(
        folder,
        """\
MemorySize: !Ref Size
Timeout: "30"
FunctionName: !Sub "orders-${Stage}"
Environment:
  Variables:
    SHORT: !Sub "${Stage} ${AWS::Region} ${!Literal} ${Size}"
    LONG: {"Fn::Sub": ["${Own}-${Stage}", {"Own": {"Ref": "AWS::AccountId"}}]}
    JOIN: !Join ["/", [a, !Ref Stage, !Ref "AWS::Partition"]]
    LIST: !Join ["|", !Ref Names]
    MAP: !FindInMap [ByStage, !Ref Stage, Memory]
    GONE: !Ref AWS::NoValue
    NUMBER: 0123
    YES: true
    DATE: 2026-01-01
    TEXT: "on"
""",
    )
    assert (function.memory_mb, function.timeout_s, function.name) == (512, 30, "orders-test")
    assert function.environment == {
        "SHORT": "test us-east-1 ${Literal} 512",
        "LONG": "012345678912-test",
        "JOIN": "a/test/aws",
        "LIST": "a|b",
        "MAP": "320",
        "NUMBER": "0123",
        "YES": "true",
        "DATE": "2026-01-01",
        "TEXT": "on",
    }
    assert PSEUDO_PARAMETERS["AWS::StackName"] == "local"


def test_a_json_template_may_be_indented_with_tabs(folder: Path) -> None:
    document = {
        "Parameters": {"Size": {"Type": "Number", "Default": "384"}},
        "Resources": {
            "F": {
                "Type": "AWS::Serverless::Function",
                "Properties": {
                    "Runtime": "python3.13",
                    "Handler": "a.b",
                    "CodeUri": "./src",
                    "MemorySize": {"Ref": "Size"},
                    "Environment": {"Variables": {"FACE": "😀", "SLASH": "\\ud83d", "SUB": {"Fn::Sub": "${Size}"}}},
                },
            }
        },
    }
    function = load(template(folder, json.dumps(document, indent="\t"), "template.json") + ":F")
    assert function.memory_mb == 384
    assert function.environment == {"FACE": "😀", "SLASH": "\\ud83d", "SUB": "384"}


def test_layers_are_local_paths_or_refs_to_layer_resources(folder: Path) -> None:
    text = (
        HEAD
        + """\
      Layers: [layer, !Ref Shared, {Ref: Plain}, code.zip]
  Shared: {Type: "AWS::Serverless::LayerVersion", Properties: {ContentUri: other}}
  Plain: {Type: "AWS::Lambda::LayerVersion", Properties: {Content: ./layer}}
"""
    )
    function = load(template(folder, text))
    assert function.layers == (folder / "layer", folder / "other", folder / "layer", folder / "code.zip")


@pytest.mark.parametrize(
    ("layers", "word"),
    [
        ("[arn:aws:lambda:us-east-1:1:layer:x:1]", "not a local path: arn:"),
        ("[!Ref Table]", "Table is a resource"),
        ("[!ImportValue shared]", "Fn::ImportValue needs a deployed stack"),
        ("[nowhere]", "nowhere"),
        ("!Split [',', 'a,b']", "no list"),
    ],
)
def test_a_layer_that_is_not_local_is_refused_unless_the_command_line_names_layers(
    folder: Path, layers: str, word: str
) -> None:
    said = refusal(folder, f"Layers: {layers}")
    assert f"template.yaml:{FIRST_LINE}" in said
    assert word in said
    assert with_properties(folder, f"Layers: {layers}", layers=(folder / "layer",)).layers == (folder / "layer",)


@pytest.mark.parametrize(
    ("properties", "override", "reason"),
    [
        ("MemorySize: !ImportValue size", {"memory_mb": 512}, "Fn::ImportValue"),
        ("MemorySize: !Ref Nothing", {"memory_mb": 512}, "parameter Nothing has no Default"),
        ("MemorySize: !Ref Secret", {"memory_mb": 512}, "Parameter Store"),
        ("MemorySize: !If [Big, 1024, 128]", {"memory_mb": 512}, "Fn::If"),
        ("Timeout: !GetAtt Table.Arn", {"timeout_s": 5}, "Fn::GetAtt"),
        ("Timeout: {Ref: Unheard}", {"timeout_s": 5}, "Unheard is neither a parameter nor a resource"),
        ("Runtime: !Sub '${Table.Arn}'", {"runtime": "python3.13"}, "attribute of a resource"),
        ("Handler: !Ref Table", {"handler": "a.b"}, "Table is a resource"),
        ("Architectures: [!Ref Nothing]", {"architecture": "arm64"}, "no Default"),
        ("EphemeralStorage: {Size: !Ref Nothing}", {"tmp_mb": 512}, "no Default"),
    ],
)
def test_a_needed_property_that_cannot_be_resolved_is_refused_with_its_line_unless_it_is_set(
    folder: Path, properties: str, override: dict[str, Any], reason: str
) -> None:
    said = refusal(folder, properties)
    assert f"template.yaml:{FIRST_LINE}: {properties.partition(':')[0]}" in said
    assert reason in said
    ((field, value),) = override.items()
    assert getattr(with_properties(folder, properties, **override), field) == value


@pytest.mark.parametrize(
    ("properties", "word"),
    [
        ("MemorySize: lots", "'lots'"),
        ("MemorySize: 64", "128 to 10240"),
        ("Timeout: 901", "timeout 901"),
        ("Timeout: 1.5", "1.5"),
        ("EphemeralStorage: {Size: 100}", "512 to 10240"),
        ("Architectures: [sparc]", "sparc"),
        ("Architectures: [x86_64, arm64]", "not a list of one"),
        ("Architectures: x86_64", "not a list of one"),
        ("Architectures: [[x86_64]]", "list or a mapping"),
        ("Environment: {Variables: {AWS_REGION: x}}", "is reserved"),
        ("FunctionName: a.b", "function name 'a.b'"),
        ("CodeUri: s3://bucket/key", "not a local path: s3://bucket/key"),
        ("CodeUri: {Bucket: b, Key: k}", "not a local path"),
        ("CodeUri: nowhere", "nowhere"),
        ("CodeUri: !Sub '${Table}'", "CodeUri of F cannot be resolved"),
        ("Runtime: [python3.13]", "list or a mapping"),
        ("Handler:", "has no value"),
    ],
)
def test_a_bad_property_is_refused_with_its_line(folder: Path, properties: str, word: str) -> None:
    said = refusal(folder, properties)
    assert word in said
    assert f"template.yaml:{FIRST_LINE}" in said


@pytest.mark.parametrize(
    "value",
    [
        "!Sub [a]",
        "!Sub [a, {}, {}]",
        "!Sub {a: b}",
        "!Sub '${Names}'",
        "!Sub '${AWS::NoValue}'",
        "!Join a",
        "!Join [a, b]",
        "!Join [a, b, c]",
        "!Join [a, [!Ref Table]]",
        "!Join [a, [[b]]]",
        "!FindInMap [ByStage, prod, Memory]",
        "!FindInMap [ByStage, test]",
        "!FindInMap [ByStage, test, Memory, 1]",
        "!Ref [a]",
        "!Ref NotANumber",
        "!GetAtt Table.Arn",
        "!Condition x",
        "!Unheard x",
        "{'Fn::Base64': x}",
        "{'Fn::GetAtt': [Table, Arn]}",
    ],
)
def test_an_intrinsic_that_is_unknown_or_malformed_is_refused_with_its_line(folder: Path, value: str) -> None:
    head = HEAD.replace("  Nothing:", "  NotANumber: {Type: Number, Default: many}\n  Nothing:")
    properties = f"      Environment:\n        Variables:\n          FINE: x\n          VALUE: {value}\n"
    with pytest.raises(InvalidFunction, match=rf"template\.yaml:{FIRST_LINE + 4}: VALUE: "):
        load(template(folder, head + properties) + ":F")


def test_environment_variables_that_cannot_be_resolved_are_all_named_and_may_be_set(folder: Path) -> None:
    properties = (
        "Environment:\n  Variables:\n    TABLE: !Ref Table\n    FINE: x\n    QUEUE: !GetAtt Queue.Arn\n    LIST: [a]\n"
    )
    said = refusal(folder, properties)
    for offset, name in ((2, "TABLE"), (4, "QUEUE"), (5, "LIST")):
        assert f"template.yaml:{FIRST_LINE + offset}: {name}: " in said
        assert f"--env {name}=VALUE" in said
    assert "FINE" not in said
    given = {"TABLE": "t", "QUEUE": "q", "LIST": "l"}
    assert with_properties(folder, properties, environment=given).environment == {**given, "FINE": "x"}


def test_an_environment_that_is_one_intrinsic_is_refused(folder: Path) -> None:
    assert "Environment.Variables of F" in refusal(folder, "Environment: {Variables: !Ref Nothing}")


def test_properties_without_a_use_may_be_unresolvable(folder: Path) -> None:
    function = with_properties(
        folder, "Description: !Ref Table\nFunctionName: !ImportValue x\nRole: !GetAtt R.Arn\nVpcConfig: !Ref V"
    )
    assert (function.name, function.description) == ("F", "")


def test_a_template_with_several_functions_lists_them(folder: Path) -> None:
    text = HEAD + "  G: {Type: 'AWS::Serverless::Function', Properties: {Runtime: r, Handler: h, CodeUri: other}}\n"
    source = template(folder, text)
    for named in (source, source + ":"):
        with pytest.raises(InvalidFunction, match="describes 2 functions: F, G") as caught:
            load(named)
        assert f"{source}:F" in caught.value.remedy
    assert load(source + ":G").name == "G"


def test_a_logical_id_that_is_no_function_is_refused(folder: Path) -> None:
    source = template(folder, HEAD)
    with pytest.raises(InvalidFunction, match=r"template\.yaml:11: Table is no function but a AWS::DynamoDB::Table"):
        load(source + ":Table")
    with pytest.raises(InvalidFunction, match="has no function 'Tabel'; did you mean 'Table'"):
        load(source + ":Tabel")


@pytest.mark.parametrize(
    "text", ["", "[]", "Resources: {}", "Resources: {T: {Type: 'AWS::SNS::Topic'}, X: 1}", "just text"]
)
def test_a_template_without_functions_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(InvalidFunction, match=r"describes no function|is no template"):
        load(template(folder, text))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("Resources:\n  F: [\n", r"template\.yaml:3: "),
        ("Resources:\n\tF: 1\n", r"template\.yaml:2: "),
        ("A: &a\n  B: *a\n", "holds itself"),
        ("? [a]\n: b\n", "key that is no text"),
        ("A: 1\n---\nB: 1\n", r"template\.yaml:2: "),
        ("A: *nowhere\n", r"template\.yaml:1: "),
        ("A: \x07\n", r"template\.yaml"),
        ("A: !!int ''\n", r"template\.yaml:1: '' is not what its tag says"),
        ("A: !!int x\n", r"template\.yaml:1: "),
        ("A: " + "[" * 5000 + "]" * 5000, r"template\.yaml"),
    ],
)
def test_a_mistake_in_yaml_is_placed(folder: Path, text: str, where: str) -> None:
    with pytest.raises(InvalidFunction, match=where):
        load(template(folder, text))


def test_a_template_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "template.yaml").write_bytes(b"A: \xff")
    with pytest.raises(InvalidFunction, match=r"template\.yaml is not UTF-8"):
        load(str(folder / "template.yaml"))


def test_anchors_and_merge_keys_are_followed(folder: Path) -> None:
    source = template(
        folder,
        """
Base: &base {Runtime: python3.13, Handler: a.b, CodeUri: src}
Resources: {F: {Type: "AWS::Serverless::Function", Properties: {<<: *base, Handler: c.d}}}
""",
    )
    assert (load(source).runtime, load(source).handler) == ("python3.13", "c.d")


def test_aliases_that_multiply_do_not_take_all_memory(folder: Path) -> None:
    lines = ["A0: &a0 [x, x]"] + [f"A{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    assert load(template(folder, "\n".join(lines) + "\n" + HEAD) + ":F").name == "F"


def image_template(folder: Path, properties: str, metadata: str = "{}") -> str:
    return template(
        folder,
        f"""
Parameters: {{Tag: {{Type: String, Default: v1}}}}
Resources:
  MyImage:
    Type: AWS::Serverless::Function
    Properties: {{PackageType: Image, {properties}}}
    Metadata: {metadata}
""",
    )


def test_a_function_that_is_an_image_is_named_by_image_uri_or_by_what_sam_build_makes(folder: Path) -> None:
    function = load(image_template(folder, "ImageUri: !Sub 'mine:${Tag}', ImageConfig: {Command: [app.handler]}"))
    assert function.code == ImageCode(reference="mine:v1")
    assert (function.runtime, function.handler) == (None, "app.handler")
    built = load(image_template(folder, "Timeout: 5", "{Dockerfile: Dockerfile, DockerContext: src, DockerTag: two}"))
    assert built.code == ImageCode(reference="myimage:two")
    unknown = image_template(folder, "ImageUri: !Ref Repository")
    with pytest.raises(InvalidFunction, match=r"template\.yaml:6: ImageUri of MyImage") as caught:
        load(unknown)
    assert "--image" in caught.value.remedy
    assert load(unknown, Overrides(image="here:1")).code == ImageCode(reference="here:1")


@pytest.mark.parametrize(
    "properties",
    [
        "Timeout: 5",
        "ImageUri: x, ImageConfig: {EntryPoint: [a]}",
        "ImageUri: x, ImageConfig: {WorkingDirectory: a}",
        "ImageUri: x, ImageConfig: {Command: [a, b]}",
        "ImageUri: x, Layers: [layer]",
        "ImageUri: !Ref AWS::NoValue",
    ],
)
def test_an_image_that_lambdas_contract_does_not_cover_is_refused(folder: Path, properties: str) -> None:
    with pytest.raises(InvalidFunction, match=r"template\.yaml:\d"):
        load(image_template(folder, properties))


def test_inline_code_becomes_a_file_of_the_runtime(folder: Path) -> None:
    def inline(runtime: str) -> str:
        return template(
            folder,
            f"""
Resources:
  F:
    Type: AWS::Lambda::Function
    Properties:
      Runtime: {runtime}
      Handler: index.handler
      Code:
        ZipFile: |
          one
          two
""",
        )

    assert load(inline("python3.13")).code == InlineCode(text="one\ntwo\n", file_name="index.py")
    assert load(inline("nodejs22.x")).code == InlineCode(text="one\ntwo\n", file_name="index.js")
    with pytest.raises(InvalidFunction, match=r"template\.yaml:9: .*no inline code for runtime 'java21'"):
        load(inline("java21"))


def test_a_function_without_code_or_handler_says_so(folder: Path) -> None:
    bare = "Resources:\n  F: {Type: 'AWS::Serverless::Function', Properties: {Runtime: python3.13, Handler: a.b}}\n"
    with pytest.raises(InvalidFunction, match=r"template\.yaml:2: F has no CodeUri"):
        load(template(folder, bare))
    with pytest.raises(InvalidFunction, match="nothing says the handler"):
        load(template(folder, bare.replace("Handler: a.b", "CodeUri: src")))
