"""Clients of AWS see Lambda: every operation, driven by botocore, every answer held to botocore's model."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest
from lambda_wire import ROLE, Wire, zipped

from harness.api.code_store import CodeStore
from harness.api.model import ProvisionedStatus
from harness.api.operations import OPERATIONS
from harness.api.registry import Registry
from harness.errors import EngineError, ImageError, InvalidFunction
from harness.function import DirectoryCode, Function
from harness.store import Store

ARN = "arn:aws:lambda:us-east-1:000000000000:function:f"


@contextlib.contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Registry]:
    with (
        Store(folder / "runs.sqlite3") as store,
        CodeStore(folder / "code") as code_store,
        Registry(store, code_store, **options) as registry,
    ):
        registry.port = 4577
        yield registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with opened(tmp_path) as registry:
        yield registry


@pytest.fixture
def wire(registry: Registry) -> Wire:
    return Wire(registry)


@pytest.fixture
def aws(wire: Wire) -> Any:
    return wire.client()


def settled(aws: Any, name: str = "f") -> None:
    for waiter in ("function_active_v2", "function_updated_v2"):
        aws.get_waiter(waiter).wait(FunctionName=name, WaiterConfig={"Delay": 0, "MaxAttempts": 100_000})


def make(aws: Any, name: str = "f", **fields: Any) -> Any:
    given = {"Runtime": "python3.13", "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped()}} | fields
    made = aws.create_function(FunctionName=name, **{key: one for key, one in given.items() if one is not None})
    settled(aws, name)
    return made


def change(aws: Any, name: str = "f", **fields: Any) -> Any:
    got = aws.update_function_configuration(FunctionName=name, **fields)
    settled(aws, name)
    return got


def refused(action: Any, *args: Any, **fields: Any) -> tuple[str, int, str]:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        action(*args, **fields)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Message"]


def status(answer: Any) -> int:
    return int(answer["ResponseMetadata"]["HTTPStatusCode"])


class Gate:
    """A preparer that waits until it is told how to end."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.error: Exception | None = None

    def __call__(self, _: Any) -> None:
        assert self.opened.wait(60)
        if self.error:
            raise self.error


@pytest.fixture
def gate(registry: Registry) -> Iterator[Gate]:
    gate = Gate()
    registry.preparer = gate
    yield gate
    gate.opened.set()


# Functions


def test_a_created_function_answers_as_on_lambda(aws: Any, registry: Registry, gate: Gate) -> None:
    data = zipped()
    made = aws.create_function(
        FunctionName="f", Runtime="python3.13", Handler="app.handler", Role=ROLE, Code={"ZipFile": data}
    )
    assert status(made) == 201
    assert (made["State"], made["StateReasonCode"], made["LastUpdateStatus"]) == ("Pending", "Creating", "InProgress")
    gate.opened.set()
    settled(aws)
    got = aws.get_function_configuration(FunctionName="f")
    assert (got["State"], got["LastUpdateStatus"], got["Version"]) == ("Active", "Successful", "$LATEST")
    assert "StateReason" not in got
    assert got["FunctionArn"] == ARN
    assert (got["MemorySize"], got["Timeout"], got["EphemeralStorage"]) == (128, 3, {"Size": 512})
    assert got["CodeSha256"] == base64.b64encode(hashlib.sha256(data).digest()).decode()
    assert got["CodeSize"] == len(data)
    assert got["Architectures"] == ["x86_64"]
    assert got["RevisionId"] != made["RevisionId"]
    assert "Environment" not in got
    assert "Layers" not in got


def test_a_function_name_is_given_once(aws: Any) -> None:
    make(aws)
    assert refused(make, aws) == ("ResourceConflictException", 409, "Function already exist: f")


def test_a_name_of_more_than_64_letters_is_refused(aws: Any) -> None:
    make(aws, "n" * 64)
    assert refused(make, aws, "n" * 65)[:2] == ("ValidationException", 400)


@pytest.mark.parametrize(
    "operation",
    ["get_function", "get_function_configuration", "delete_function", "publish_version", "get_function_concurrency",
     "list_versions_by_function", "list_aliases", "get_policy", "list_provisioned_concurrency_configs"],
)  # fmt: skip
def test_a_function_that_is_not_there_is_not_found(aws: Any, operation: str) -> None:
    code, http, message = refused(getattr(aws, operation), FunctionName="nope")
    assert (code, http) == ("ResourceNotFoundException", 404)
    assert message == "Function not found: arn:aws:lambda:us-east-1:000000000000:function:nope"


@pytest.mark.parametrize(
    "form", ["f", "function:f", "000000000000:f", "000000000000:function:f", "us-east-1:000000000000:function:f", ARN]
)
def test_every_form_of_a_name_means_the_same_function(aws: Any, form: str) -> None:
    make(aws)
    aws.publish_version(FunctionName="f")
    assert aws.get_function(FunctionName=form)["Configuration"]["FunctionArn"] == ARN
    assert aws.get_function(FunctionName=f"{form}:1")["Configuration"]["FunctionArn"] == f"{ARN}:1"
    assert aws.get_function(FunctionName=f"{form}:1", Qualifier="1")["Configuration"]["Version"] == "1"
    code, http, message = refused(aws.get_function, FunctionName=f"{form}:1", Qualifier="$LATEST")
    assert (code, http) == ("InvalidParameterValueException", 400)
    assert message == "The derived qualifier from the function name does not match the specified qualifier."


def test_functions_of_other_regions_and_accounts_are_not_here(aws: Any) -> None:
    make(aws)
    assert refused(aws.get_function, FunctionName=ARN.replace("us-east-1", "eu-west-1"))[:2] == (
        "ResourceNotFoundException",
        404,
    )
    assert refused(aws.get_function, FunctionName=ARN.replace("0" * 12, "1" * 12))[:2] == ("AccessDeniedException", 403)


def test_the_arn_shows_the_qualifier_that_was_asked_by(aws: Any) -> None:
    make(aws)
    aws.publish_version(FunctionName="f")
    aws.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    for qualifier, version in (("$LATEST", "$LATEST"), ("1", "1"), ("live", "1")):
        got = aws.get_function_configuration(FunctionName="f", Qualifier=qualifier)
        assert (got["FunctionArn"], got["Version"]) == (f"{ARN}:{qualifier}", version)
    missing = refused(aws.get_function, FunctionName="f", Qualifier="9")
    assert missing == ("ResourceNotFoundException", 404, f"Function not found: {ARN}:9")


def test_changes_are_refused_while_one_is_on_its_way(aws: Any, gate: Gate) -> None:
    made = {"Runtime": "python3.13", "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped()}}
    aws.create_function(FunctionName="f", **made)
    pending = "The function is currently in the following state: Pending"
    code, http, message = refused(aws.update_function_configuration, FunctionName="f", MemorySize=256)
    assert (code, http) == ("ResourceConflictException", 409)
    assert pending in message
    assert pending in refused(aws.publish_version, FunctionName="f")[2]
    gate.opened.set()
    settled(aws)
    gate.opened.clear()
    got = aws.update_function_configuration(FunctionName="f", MemorySize=256)
    assert (got["State"], got["LastUpdateStatus"], got["MemorySize"]) == ("Active", "InProgress", 256)
    busy = f"An update is in progress for resource: {ARN}"
    for action in (
        lambda: aws.update_function_configuration(FunctionName="f", MemorySize=512),
        lambda: aws.update_function_code(FunctionName="f", ZipFile=zipped("x = 1")),
        lambda: aws.publish_version(FunctionName="f"),
    ):
        code, http, message = refused(action)
        assert (code, http) == ("ResourceConflictException", 409)
        assert busy in message


def test_a_function_that_cannot_be_prepared_failed_and_says_why(aws: Any, gate: Gate) -> None:
    gate.error = ImageError("no image serves ruby3.4", remedy="name one")
    gate.opened.set()
    aws.create_function(FunctionName="f", Runtime="ruby3.4", Handler="a.b", Role=ROLE, Code={"ZipFile": zipped()})
    with pytest.raises(botocore.exceptions.WaiterError):
        settled(aws)
    got = aws.get_function_configuration(FunctionName="f")
    assert (got["State"], got["StateReasonCode"], got["LastUpdateStatus"]) == ("Failed", "InvalidImage", "Failed")
    assert got["StateReason"] == "no image serves ruby3.4; name one"
    # It can be mended.
    gate.error = None
    change(aws, Runtime="python3.13")
    assert aws.get_function_configuration(FunctionName="f")["State"] == "Active"


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineError("gone"), "InternalError"), (InvalidFunction("bad"), "InvalidConfiguration"), (OSError(), "InternalError")],
)  # fmt: skip
def test_a_failed_update_leaves_the_function_as_it_ran_before(
    aws: Any, registry: Registry, gate: Gate, error: Exception, code: str
) -> None:
    gate.opened.set()
    make(aws)
    gate.error = error
    aws.update_function_configuration(FunctionName="f", MemorySize=1024)
    with pytest.raises(botocore.exceptions.WaiterError):
        settled(aws)
    got = aws.get_function_configuration(FunctionName="f")
    assert (got["State"], got["LastUpdateStatus"], got["LastUpdateStatusReasonCode"]) == ("Active", "Failed", code)
    assert got["MemorySize"] == 1024
    assert registry.resolve("f").version.configuration.memory_mb == 128


def test_a_function_of_the_command_line_takes_updates(aws: Any, registry: Registry, tmp_path: Path) -> None:
    registry.deploy(
        Function(name="f", runtime="provided.al2023", handler=None, code=DirectoryCode(path=tmp_path), source="here")
    )
    settled(aws)
    assert change(aws, MemorySize=256)["MemorySize"] == 256
    assert aws.get_function(FunctionName="f")["Code"]["Location"] == tmp_path.as_uri()
    aws.update_function_code(FunctionName="f", ZipFile=zipped())
    settled(aws)
    assert aws.get_function_configuration(FunctionName="f")["CodeSize"] == len(zipped())


def test_an_update_changes_what_it_names_and_nothing_else(aws: Any) -> None:
    make(aws, Description="original", Environment={"Variables": {"A1": "1"}}, Timeout=7)
    got = change(aws, MemorySize=512)
    assert (got["MemorySize"], got["Timeout"], got["Description"]) == (512, 7, "original")
    assert got["Environment"] == {"Variables": {"A1": "1"}}
    assert "Environment" not in change(aws, Environment={"Variables": {}})
    got = change(
        aws,
        TracingConfig={"Mode": "Active"},
        EphemeralStorage={"Size": 1024},
        DeadLetterConfig={"TargetArn": "arn:aws:sqs:us-east-1:000000000000:dead"},
        LoggingConfig={"LogFormat": "JSON"},
        VpcConfig={"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
        SnapStart={"ApplyOn": "PublishedVersions"},
        KMSKeyArn="arn:aws:kms:us-east-1:000000000000:key/k",
    )
    assert got["TracingConfig"] == {"Mode": "Active"}
    assert got["DeadLetterConfig"]["TargetArn"].endswith(":dead")
    assert got["LoggingConfig"] == {"LogFormat": "JSON", "LogGroup": "/aws/lambda/f"}
    assert got["VpcConfig"]["SubnetIds"] == ["subnet-1"]
    aws.update_function_code(FunctionName="f", ZipFile=zipped("x = 1"), Architectures=["arm64"])
    settled(aws)
    got = aws.get_function_configuration(FunctionName="f")
    assert (got["LoggingConfig"]["LogFormat"], got["Architectures"]) == ("JSON", ["arm64"])
    got = change(aws, DeadLetterConfig={"TargetArn": ""}, KMSKeyArn="")
    assert "DeadLetterConfig" not in got
    assert "KMSKeyArn" not in got


def test_a_revision_that_is_not_the_latest_is_refused(aws: Any) -> None:
    make(aws)
    for action, fields in (
        (aws.update_function_configuration, {"MemorySize": 256}),
        (aws.update_function_code, {"ZipFile": zipped()}),
        (aws.publish_version, {}),
        (aws.add_permission, {"StatementId": "s", "Action": "lambda:InvokeFunction", "Principal": "*"}),
    ):
        code, http, message = refused(action, FunctionName="f", RevisionId="stale", **fields)
        assert (code, http) == ("PreconditionFailedException", 412)
        assert message.startswith("The Revision Id provided does not match the latest Revision Id.")
    now = aws.get_function_configuration(FunctionName="f")["RevisionId"]
    assert status(aws.update_function_configuration(FunctionName="f", RevisionId=now, MemorySize=256)) == 200


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_REGION": "x", "A1": "b"}, "Reserved keys used in this request: AWS_REGION"),
        ({"A1": "x" * 4096}, "exceeded the 4KB limit"),
    ],
)
def test_environment_variables_that_lambda_refuses(aws: Any, variables: dict[str, str], words: str) -> None:
    code, http, message = refused(make, aws, Environment={"Variables": variables})
    assert (code, http) == ("InvalidParameterValueException", 400)
    assert words in message
    assert "xxxx" not in message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"Code": {}}, "Please provide a source for function code."),
        ({"Code": {"ZipFile": b""}}, "Uploaded file must be a non-empty zip"),
        ({"Code": {"ZipFile": b"not a zip"}}, "Could not unzip uploaded file. Please check your file, then try to upload"),
        ({"Code": {"ImageUri": "an:image"}}, "Please don't provide ImageUri when creating a function with packageType Zip."),
        ({"PackageType": "Image"}, "Please provide ImageUri when creating a function with packageType Image."),
        ({"Handler": None}, "Runtime and Handler are mandatory parameters for functions created with deployment"),
        ({"Runtime": None}, "Runtime and Handler are mandatory parameters for functions created with deployment"),
        ({"ImageConfig": {"Command": ["a"]}}, "Please don't provide ImageConfig when PackageType is Zip."),
        ({"Code": {"S3Bucket": "elsewhere", "S3Key": "k.zip"}}, "S3 Error Code: NoSuchBucket"),
        ({"Code": {"S3Bucket": "hot-reload", "S3Key": "/no/such/directory"}}, "S3 Error Code: NoSuchKey"),
        ({"Code": {"S3Bucket": "hot-reload", "S3Key": "relative"}}, "S3 Error Code: NoSuchKey"),
    ],
)  # fmt: skip
def test_code_that_lambda_refuses(aws: Any, fields: dict[str, Any], words: str) -> None:
    code, http, message = refused(make, aws, **fields)
    assert (code, http) == ("InvalidParameterValueException", 400)
    assert words in message
    assert aws.list_functions()["Functions"] == []


def archive_of(*entries: tuple[str, int, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, mode, data in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            made.writestr(info, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        archive_of(("../outside.py", 0o100644, b"x")),
        archive_of(("/etc/passwd", 0o100644, b"x")),
        archive_of(("link", 0o120777, b"/etc/passwd")),
        archive_of(("pipe", 0o010644, b"")),
        archive_of(("n" * 300, 0o100644, b"")),
        archive_of(("d/" * 1500 + "x", 0o100644, b"")),
        zipped()[:-30],
    ],
)
def test_archives_that_lead_elsewhere_or_are_damaged_are_refused(aws: Any, registry: Registry, data: bytes) -> None:
    code, http, message = refused(make, aws, Code={"ZipFile": data})
    assert (code, http) == ("InvalidParameterValueException", 400)
    assert message.startswith("Could not unzip uploaded file.")
    assert str(registry.code_store.directory) not in message
    assert [path.name for path in registry.code_store.directory.iterdir()] == ["lock"]


def test_sizes_are_lambdas(aws: Any) -> None:
    bomb = archive_of(*((f"{number}", 0o100644, bytes(53 << 20)) for number in range(5)))
    assert refused(make, aws, Code={"ZipFile": bomb}) == (
        "InvalidParameterValueException",
        400,
        "Unzipped size must be smaller than 262144000 bytes",
    )
    assert refused(make, aws, Code={"ZipFile": bytes(52_428_801)}) == (
        "RequestEntityTooLargeException",
        413,
        "Request must be smaller than 70167211 bytes for the CreateFunction operation",
    )


def test_a_function_can_be_an_image(aws: Any, registry: Registry) -> None:
    image = {"ImageUri": "000000000000.dkr.ecr.us-east-1.amazonaws.com/r@sha256:" + "ab" * 32}
    fields: dict[str, Any] = {"Runtime": None, "Handler": None, "PackageType": "Image", "Code": image}
    make(aws, **fields, ImageConfig={"Command": ["app.handler"]})
    got = aws.get_function(FunctionName="f")
    assert got["Code"] == {"RepositoryType": "ECR", **image, "ResolvedImageUri": image["ImageUri"]}
    assert got["Configuration"]["CodeSha256"] == "ab" * 32
    assert got["Configuration"]["ImageConfigResponse"] == {"ImageConfig": {"Command": ["app.handler"]}}
    function = registry.resolve("f").version.function()
    assert (function.runtime, function.handler) == (None, "app.handler")
    code, _, message = refused(aws.update_function_code, FunctionName="f", ZipFile=zipped())
    assert message == "Please provide ImageUri when updating a function with packageType Image."
    assert refused(aws.update_function_configuration, FunctionName="f", Handler="x.y")[0] == code
    # An image may be built anew under its name, so each update makes another deployment.
    before = registry.resolve("f").version
    aws.update_function_code(FunctionName="f", **image)
    settled(aws)
    assert registry.resolve("f").version.deployment_id != before.deployment_id
    aws.publish_version(FunctionName="f")


def test_a_function_can_be_a_directory_and_its_versions_keep_what_was_in_it(
    aws: Any, registry: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    (folder / "inner").mkdir(parents=True)
    (folder / "app.py").write_text("one")
    (folder / "inner" / "link").symlink_to("../app.py")
    make(aws, Code={"S3Bucket": "hot-reload", "S3Key": str(folder)})
    assert aws.get_function(FunctionName="f")["Code"]["Location"] == folder.as_uri()
    function = registry.resolve("f").version.function()
    assert function.code.path == folder  # type: ignore[union-attr]
    assert aws.publish_version(FunctionName="f")["Version"] == "1"
    assert aws.publish_version(FunctionName="f")["Version"] == "1"
    (folder / "app.py").write_text("two")
    assert aws.publish_version(FunctionName="f")["Version"] == "2"
    with zipfile.ZipFile(registry.resolve("f", "1").version.function().code.path) as kept:  # type: ignore[union-attr]
        assert kept.read("app.py") == b"one"
        assert sorted(kept.namelist()) == ["app.py", "inner/", "inner/link"]


def test_new_code_is_seen_once_it_is_ready(aws: Any, registry: Registry, gate: Gate) -> None:
    gate.opened.set()
    make(aws)
    before = aws.get_function(FunctionName="f")["Configuration"]["CodeSha256"]
    dry = aws.update_function_code(FunctionName="f", ZipFile=zipped("x = 1"), DryRun=True)
    assert dry["CodeSha256"] != before
    assert aws.get_function(FunctionName="f")["Configuration"]["CodeSha256"] == before
    gate.opened.clear()
    after = aws.update_function_code(FunctionName="f", ZipFile=zipped("x = 2"))["CodeSha256"]
    assert registry.resolve("f").version.package.sha256 == base64.b64decode(before).hex()
    gate.opened.set()
    settled(aws)
    assert registry.resolve("f").version.package.sha256 == base64.b64decode(after).hex()


def test_functions_are_listed_in_pages_and_without_their_states(aws: Any) -> None:
    for name in ("c", "a", "e", "b", "d"):
        make(aws, name)
    pages = list(aws.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 2}))
    assert [[one["FunctionName"] for one in page["Functions"]] for page in pages] == [["a", "b"], ["c", "d"], ["e"]]
    assert "NextMarker" not in pages[-1]
    assert "State" not in pages[0]["Functions"][0]
    assert refused(aws.list_functions, Marker="nonsense")[0] == "InvalidParameterValueException"
    aws.publish_version(FunctionName="a")
    every = aws.list_functions(FunctionVersion="ALL")["Functions"]
    assert [one["FunctionArn"].split("function:")[1] for one in every][:3] == ["a:$LATEST", "a:1", "b:$LATEST"]


def test_a_marker_survives_that_its_function_is_deleted(aws: Any) -> None:
    for name in ("a", "b", "c"):
        make(aws, name)
    marker = aws.list_functions(MaxItems=2)["NextMarker"]
    aws.delete_function(FunctionName="b")
    assert [one["FunctionName"] for one in aws.list_functions(Marker=marker)["Functions"]] == ["c"]


def test_a_deleted_function_is_gone_with_its_code(aws: Any, registry: Registry) -> None:
    make(aws)
    assert status(aws.delete_function(FunctionName="f")) == 204
    assert refused(aws.get_function, FunctionName="f")[:2] == ("ResourceNotFoundException", 404)
    assert not list(registry.code_store.directory.glob("*.zip"))


# Versions and aliases


def test_versions_count_up_and_are_the_same_where_nothing_changed(aws: Any) -> None:
    make(aws)
    first = aws.publish_version(FunctionName="f", Description="the first")
    assert (status(first), first["Version"], first["FunctionArn"]) == (201, "1", f"{ARN}:1")
    assert (first["Description"], first["State"]) == ("the first", "Active")
    assert aws.publish_version(FunctionName="f", Description="no other")["Version"] == "1"
    change(aws, MemorySize=512)
    assert aws.publish_version(FunctionName="f")["Version"] == "2"
    change(aws, Description="for a new version")
    assert aws.publish_version(FunctionName="f")["Version"] == "3"
    aws.update_function_code(FunctionName="f", ZipFile=zipped("x = 1"))
    settled(aws)
    assert aws.publish_version(FunctionName="f")["Version"] == "4"
    assert aws.get_function(FunctionName="f", Qualifier="1")["Configuration"]["MemorySize"] == 128


def test_the_number_of_a_deleted_version_is_not_used_again(aws: Any) -> None:
    make(aws, Publish=True)
    change(aws, MemorySize=512)
    assert aws.publish_version(FunctionName="f")["Version"] == "2"
    aws.delete_function(FunctionName="f", Qualifier="2")
    assert aws.publish_version(FunctionName="f")["Version"] == "3"
    listed = [one["Version"] for one in aws.list_versions_by_function(FunctionName="f")["Versions"]]
    assert listed == ["$LATEST", "1", "3"]
    aws.delete_function(FunctionName="f")
    make(aws)
    assert aws.publish_version(FunctionName="f")["Version"] == "4"


def test_versions_are_listed_by_number_in_pages(aws: Any) -> None:
    make(aws)
    for memory in range(128, 128 + 11):
        change(aws, MemorySize=memory)
        aws.publish_version(FunctionName="f")
    pages = list(
        aws.get_paginator("list_versions_by_function").paginate(FunctionName="f", PaginationConfig={"PageSize": 5})
    )
    listed = [[one["Version"] for one in page["Versions"]] for page in pages]
    assert listed == [["$LATEST", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"], ["10", "11"]]
    assert pages[0]["Versions"][0]["FunctionArn"] == f"{ARN}:$LATEST"


def test_publish_with_create_and_update_answers_with_the_version(aws: Any, gate: Gate) -> None:
    fields = {"Runtime": "python3.13", "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped()}}
    made = aws.create_function(FunctionName="f", **fields, Publish=True)
    assert (made["Version"], made["State"]) == ("1", "Pending")
    gate.opened.set()
    settled(aws)
    assert aws.get_function_configuration(FunctionName="f", Qualifier="1")["State"] == "Active"
    assert aws.update_function_code(FunctionName="f", ZipFile=zipped("x = 1"), Publish=True)["Version"] == "2"


def test_publishing_other_code_than_the_caller_means_is_refused(aws: Any) -> None:
    make(aws)
    code, http, message = refused(aws.publish_version, FunctionName="f", CodeSha256="other")
    assert (code, http) == ("InvalidParameterValueException", 400)
    assert message.startswith("CodeSHA256 (other) is different from current CodeSHA256 in $LATEST")
    now = aws.get_function_configuration(FunctionName="f")["CodeSha256"]
    assert aws.publish_version(FunctionName="f", CodeSha256=now)["Version"] == "1"


def test_what_may_be_deleted_of_a_function(aws: Any) -> None:
    make(aws, Publish=True)
    aws.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    assert refused(aws.delete_function, FunctionName="f", Qualifier="$LATEST") == (
        "InvalidParameterValueException",
        400,
        "$LATEST version cannot be deleted without deleting the function.",
    )
    assert refused(aws.delete_function, FunctionName="f", Qualifier="live")[0] == "InvalidParameterValueException"
    assert refused(aws.delete_function, FunctionName="f", Qualifier="1") == (
        "ResourceConflictException",
        409,
        "Unable to delete version because the following aliases reference it: [live]",
    )
    aws.delete_alias(FunctionName="f", Name="live")
    assert status(aws.delete_function(FunctionName="f", Qualifier="1")) == 204
    assert status(aws.delete_function(FunctionName="f", Qualifier="1")) == 204
    assert [one["Version"] for one in aws.list_versions_by_function(FunctionName="f")["Versions"]] == ["$LATEST"]


def test_aliases_live_as_on_lambda(aws: Any) -> None:
    make(aws, Publish=True)
    change(aws, MemorySize=512)
    aws.publish_version(FunctionName="f")
    assert refused(aws.get_alias, FunctionName="f", Name="live") == (
        "ResourceNotFoundException",
        404,
        f"Cannot find alias arn: {ARN}:live",
    )
    made = aws.create_alias(FunctionName="f", Name="live", FunctionVersion="1", Description="d")
    assert (status(made), made["AliasArn"]) == (201, f"{ARN}:live")
    again = refused(aws.create_alias, FunctionName="f", Name="live", FunctionVersion="1")
    assert again == ("ResourceConflictException", 409, f"Alias already exists: {ARN}:live")
    assert refused(aws.create_alias, FunctionName="f", Name="x", FunctionVersion="9")[:2] == (
        "ResourceNotFoundException",
        404,
    )
    weights = {"AdditionalVersionWeights": {"2": 0.25}}
    got = aws.update_alias(FunctionName="f", Name="live", RoutingConfig=weights)
    assert (got["RoutingConfig"], got["FunctionVersion"], got["Description"]) == (weights, "1", "d")
    assert refused(aws.update_alias, FunctionName="f", Name="live", RevisionId=made["RevisionId"])[1] == 412
    assert (
        refused(aws.update_alias, FunctionName="f", Name="no", FunctionVersion="1")[2] == f"Alias not found: {ARN}:no"
    )
    assert "RoutingConfig" not in aws.update_alias(FunctionName="f", Name="live", RoutingConfig={}, FunctionVersion="2")
    aws.create_alias(FunctionName="f", Name="beta", FunctionVersion="1")
    assert [one["Name"] for one in aws.list_aliases(FunctionName="f")["Aliases"]] == ["beta", "live"]
    assert [one["Name"] for one in aws.list_aliases(FunctionName="f", FunctionVersion="2")["Aliases"]] == ["live"]
    assert status(aws.delete_alias(FunctionName="f", Name="live")) == 204
    assert status(aws.delete_alias(FunctionName="f", Name="live")) == 204


@pytest.mark.parametrize(
    ("version", "weights", "code"),
    [
        ("1", {"2": 0.1, "3": 0.1}, "InvalidParameterValueException"),
        ("1", {"1": 0.1}, "InvalidParameterValueException"),
        ("$LATEST", {"1": 0.1}, "InvalidParameterValueException"),
        ("1", {"9": 0.1}, "ResourceNotFoundException"),
        ("1", {"2": 1.5}, "ValidationException"),
        ("1", {"live": 0.5}, "ValidationException"),
    ],
)
def test_routing_weights_that_make_no_sense(aws: Any, version: str, weights: dict[str, float], code: str) -> None:
    make(aws, Publish=True)
    routing = {"AdditionalVersionWeights": weights}
    made = {"FunctionName": "f", "Name": "live", "FunctionVersion": version, "RoutingConfig": routing}
    assert refused(aws.create_alias, **made)[0] == code


# Concurrency


def test_reserved_concurrency_leaves_a_hundred_to_the_others(aws: Any) -> None:
    make(aws)
    make(aws, "g")
    assert "ReservedConcurrentExecutions" not in aws.get_function_concurrency(FunctionName="f")
    got = aws.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=800)
    assert (status(got), got["ReservedConcurrentExecutions"]) == (200, 800)
    assert refused(aws.put_function_concurrency, FunctionName="g", ReservedConcurrentExecutions=101) == (
        "InvalidParameterValueException",
        400,
        (
            "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution"
            " below its minimum value of [100]."
        ),
    )
    aws.put_function_concurrency(FunctionName="g", ReservedConcurrentExecutions=100)
    aws.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=0)
    assert aws.get_function_concurrency(FunctionName="f")["ReservedConcurrentExecutions"] == 0
    assert aws.get_function(FunctionName="f")["Concurrency"] == {"ReservedConcurrentExecutions": 0}
    limit = aws.get_account_settings()["AccountLimit"]
    assert (limit["ConcurrentExecutions"], limit["UnreservedConcurrentExecutions"]) == (1000, 900)
    assert status(aws.delete_function_concurrency(FunctionName="g")) == 204
    assert aws.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"] == 1000


def test_provisioned_concurrency_is_for_versions_and_aliases(aws: Any, registry: Registry) -> None:
    make(aws, Publish=True)
    aws.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    aws.create_alias(FunctionName="f", Name="head", FunctionVersion="$LATEST")
    wanted = {"FunctionName": "f", "ProvisionedConcurrentExecutions": 2}
    unpublished = "Provisioned Concurrency Configs cannot be applied to unpublished function versions."
    for qualifier in ("$LATEST", "head"):
        assert refused(aws.put_provisioned_concurrency_config, **wanted, Qualifier=qualifier) == (
            "InvalidParameterValueException",
            400,
            unpublished,
        )
    assert refused(aws.get_provisioned_concurrency_config, FunctionName="f", Qualifier="live") == (
        "ProvisionedConcurrencyConfigNotFoundException",
        404,
        "No Provisioned Concurrency Config found for this function",
    )
    put = aws.put_provisioned_concurrency_config(**wanted, Qualifier="live")
    assert (status(put), put["Status"], put["RequestedProvisionedConcurrentExecutions"]) == (202, "IN_PROGRESS", 2)
    registry.provisioned_status = lambda _name, _qualifier: ProvisionedStatus(status="READY", allocated=2, available=1)
    got = aws.get_provisioned_concurrency_config(FunctionName="f", Qualifier="live")
    assert (got["Status"], got["AllocatedProvisionedConcurrentExecutions"]) == ("READY", 2)
    assert got["AvailableProvisionedConcurrentExecutions"] == 1
    registry.provisioned_status = lambda _name, _qualifier: ProvisionedStatus(status="FAILED", reason="no room")
    listed = aws.list_provisioned_concurrency_configs(FunctionName="f")["ProvisionedConcurrencyConfigs"]
    assert [(one["FunctionArn"], one["StatusReason"]) for one in listed] == [(f"{ARN}:live", "no room")]
    assert refused(aws.put_provisioned_concurrency_config, **wanted, Qualifier="1")[:2] == (
        "ResourceConflictException",
        409,
    )
    too_many = {"FunctionName": "f", "ProvisionedConcurrentExecutions": 901, "Qualifier": "live"}
    assert "minimum value of [100]" in refused(aws.put_provisioned_concurrency_config, **too_many)[2]
    assert refused(aws.put_function_concurrency, FunctionName="f", ReservedConcurrentExecutions=1)[1] == 400
    assert status(aws.delete_provisioned_concurrency_config(FunctionName="f", Qualifier="live")) == 204
    aws.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=1)
    assert refused(aws.put_provisioned_concurrency_config, **wanted, Qualifier="live")[1] == 400


def test_an_alias_with_weights_has_no_provisioned_concurrency(aws: Any) -> None:
    make(aws, Publish=True)
    change(aws, MemorySize=512)
    aws.publish_version(FunctionName="f")
    routing = {"AdditionalVersionWeights": {"2": 0.5}}
    aws.create_alias(FunctionName="f", Name="live", FunctionVersion="1", RoutingConfig=routing)
    wanted = {"FunctionName": "f", "ProvisionedConcurrentExecutions": 1, "Qualifier": "live"}
    words = "Alias with weights can not be used with Provisioned Concurrency"
    assert refused(aws.put_provisioned_concurrency_config, **wanted)[2] == words
    aws.update_alias(FunctionName="f", Name="live", RoutingConfig={})
    aws.put_provisioned_concurrency_config(**wanted)
    assert refused(aws.update_alias, FunctionName="f", Name="live", RoutingConfig=routing)[2] == words


# Layers


def test_layers_are_published_read_and_used(aws: Any, registry: Registry) -> None:
    data = zipped("x = 1", "python/shared.py")
    made = aws.publish_layer_version(
        LayerName="l",
        Content={"ZipFile": data},
        Description="d",
        CompatibleRuntimes=["python3.13"],
        CompatibleArchitectures=["x86_64"],
        LicenseInfo="MIT",
    )
    arn = "arn:aws:lambda:us-east-1:000000000000:layer:l"
    assert (status(made), made["Version"], made["LayerVersionArn"]) == (201, 1, f"{arn}:1")
    assert made["Content"]["CodeSize"] == len(data)
    second = aws.publish_layer_version(LayerName=arn, Content={"ZipFile": zipped("x = 2", "python/shared.py")})
    assert second["Version"] == 2
    got = aws.get_layer_version(LayerName="l", VersionNumber=1)
    assert got["CompatibleRuntimes"] == ["python3.13"]
    assert aws.get_layer_version_by_arn(Arn=f"{arn}:1")["Content"] == got["Content"]
    assert [one["Version"] for one in aws.list_layer_versions(LayerName="l")["LayerVersions"]] == [2, 1]
    fitting = aws.list_layers(CompatibleRuntime="python3.13")["Layers"]
    assert [one["LatestMatchingVersion"]["Version"] for one in fitting] == [1]
    assert aws.list_layers()["Layers"][0]["LatestMatchingVersion"]["Version"] == 2
    make(aws, Layers=[f"{arn}:1"])
    shown = aws.get_function_configuration(FunctionName="f")["Layers"]
    assert shown == [{"Arn": f"{arn}:1", "CodeSize": len(data)}]
    (layer,) = registry.resolve("f").version.function().layers
    assert (layer / "python" / "shared.py").read_text() == "x = 1"
    # The function keeps the layer that it was made with.
    assert status(aws.delete_layer_version(LayerName="l", VersionNumber=1)) == 204
    assert status(aws.delete_layer_version(LayerName="l", VersionNumber=1)) == 204
    assert refused(aws.get_layer_version, LayerName="l", VersionNumber=1)[:2] == ("ResourceNotFoundException", 404)
    assert (layer / "python" / "shared.py").exists()
    aws.delete_layer_version(LayerName="l", VersionNumber=2)
    assert aws.list_layers()["Layers"] == []
    assert aws.publish_layer_version(LayerName="l", Content={"ZipFile": data})["Version"] == 3
    change(aws, Layers=[])
    assert "Layers" not in aws.get_function_configuration(FunctionName="f")


def test_layers_that_lambda_refuses(aws: Any) -> None:
    for name in "abcdef":
        aws.publish_layer_version(LayerName=name, Content={"ZipFile": zipped()})
    aws.publish_layer_version(LayerName="a", Content={"ZipFile": zipped()})
    arn = "arn:aws:lambda:us-east-1:000000000000:layer:"
    six = refused(make, aws, Layers=[f"{arn}{name}:1" for name in "abcdef"])
    assert six == ("InvalidParameterValueException", 400, "Cannot reference more than 5 layers.")
    assert "does not exist" in refused(make, aws, Layers=[f"{arn}a:9"])[2]
    assert "does not exist" in refused(make, aws, Layers=["arn:aws:lambda:us-east-1:123456789012:layer:a:1"])[2]
    assert "Two different versions of the same layer" in refused(make, aws, Layers=[f"{arn}a:1", f"{arn}a:2"])[2]
    assert refused(aws.publish_layer_version, LayerName="l", Content={"S3Bucket": "bucket", "S3Key": "k"})[1] == 400
    assert refused(aws.publish_layer_version, LayerName="l", Content={})[1] == 400
    assert refused(aws.get_layer_version, LayerName="a", VersionNumber=0)[0] == "InvalidParameterValueException"


def test_code_and_layers_together_have_the_limit_of_one_package(aws: Any) -> None:
    half = archive_of(("data", 0o100644, bytes(130 << 20)))
    layer = aws.publish_layer_version(LayerName="half", Content={"ZipFile": half})["LayerVersionArn"]
    message = refused(make, aws, Code={"ZipFile": half}, Layers=[layer])[2]
    assert message.startswith("Function code combined with layers exceeds the maximum allowed size of 262144000 bytes.")


# What hangs on a function


def test_function_urls_have_an_address_on_this_machine(aws: Any, registry: Registry) -> None:
    make(aws, Publish=True)
    assert refused(aws.get_function_url_config, FunctionName="f") == (
        "ResourceNotFoundException",
        404,
        "The resource you requested does not exist.",
    )
    cors = {"AllowOrigins": ["*"], "MaxAge": 5}
    made = aws.create_function_url_config(FunctionName="f", AuthType="NONE", Cors=cors)
    assert (status(made), made["InvokeMode"], made["FunctionArn"]) == (201, "BUFFERED", ARN)
    url_id = made["FunctionUrl"].removeprefix("http://").split(".")[0]
    assert len(url_id) == 32
    assert made["FunctionUrl"] == f"http://{url_id}.lambda-url.us-east-1.localhost:4577/"
    url = registry.function_url(url_id)
    assert url is not None
    assert (url.function_name, url.qualifier, url.cors) == ("f", "$LATEST", cors)
    again = refused(aws.create_function_url_config, FunctionName="f", AuthType="NONE")
    assert (again[0], again[1]) == ("ResourceConflictException", 409)
    got = aws.update_function_url_config(FunctionName="f", AuthType="AWS_IAM", Cors={})
    assert (got["AuthType"], got.get("Cors"), got["FunctionUrl"]) == ("AWS_IAM", None, made["FunctionUrl"])
    aws.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    alias = aws.create_function_url_config(FunctionName="f", Qualifier="live", AuthType="NONE")
    assert alias["FunctionArn"] == f"{ARN}:live"
    assert refused(aws.create_function_url_config, FunctionName="f", Qualifier="1", AuthType="NONE")[1] == 400
    assert len(aws.list_function_url_configs(FunctionName="f")["FunctionUrlConfigs"]) == 2
    assert status(aws.delete_function_url_config(FunctionName="f")) == 204
    assert registry.function_url(url_id) is None
    assert aws.get_function_url_config(FunctionName="f", Qualifier="live")["FunctionUrl"] == alias["FunctionUrl"]


def test_event_invoke_configs_are_put_whole_and_updated_in_part(aws: Any, registry: Registry) -> None:
    make(aws)
    make(aws, "g")
    missing = refused(aws.get_function_event_invoke_config, FunctionName="f")
    assert missing[2] == f"The function {ARN}:$LATEST doesn't have an EventInvokeConfig"
    assert refused(aws.put_function_event_invoke_config, FunctionName="nope", MaximumRetryAttempts=0)[2] == (
        "The function doesn't exist."
    )
    assert refused(aws.put_function_event_invoke_config, FunctionName="f")[2].startswith(
        "You must specify at least one"
    )
    other = f"{ARN[:-1]}g"
    got = aws.put_function_event_invoke_config(
        FunctionName="f", MaximumRetryAttempts=0, DestinationConfig={"OnFailure": {"Destination": other}}
    )
    assert (got["FunctionArn"], got["MaximumRetryAttempts"]) == (f"{ARN}:$LATEST", 0)
    assert got["DestinationConfig"] == {"OnSuccess": {}, "OnFailure": {"Destination": other}}
    got = aws.update_function_event_invoke_config(FunctionName="f", MaximumEventAgeInSeconds=60)
    assert (got["MaximumRetryAttempts"], got["MaximumEventAgeInSeconds"]) == (0, 60)
    config = registry.event_invoke_config("f")
    assert config is not None
    assert (config.on_failure, config.maximum_event_age_s) == (other, 60)
    assert "MaximumEventAgeInSeconds" not in aws.put_function_event_invoke_config(
        FunctionName="f", MaximumRetryAttempts=1
    )
    assert refused(aws.update_function_event_invoke_config, FunctionName="g", MaximumRetryAttempts=0)[1] == 404
    for arn, words in ((ARN, "itself"), (f"{ARN}x", "invalid"), ("arn:aws:ec2:us-east-1:000000000000:x", "invalid")):
        destination = {"OnSuccess": {"Destination": arn}}
        fields = {"FunctionName": "f", "DestinationConfig": destination}
        assert words in refused(aws.put_function_event_invoke_config, **fields)[2]
    listed = aws.list_function_event_invoke_configs(FunctionName="f")["FunctionEventInvokeConfigs"]
    assert [one["FunctionArn"] for one in listed] == [f"{ARN}:$LATEST"]
    assert status(aws.delete_function_event_invoke_config(FunctionName="f")) == 204
    assert refused(aws.delete_function_event_invoke_config, FunctionName="f")[1] == 404


def test_policies_are_kept_in_awss_json(aws: Any) -> None:
    make(aws, Publish=True)
    assert refused(aws.remove_permission, FunctionName="f", StatementId="s")[2] == (
        "No policy is associated with the given resource."
    )
    wanted = {
        "FunctionName": "f",
        "StatementId": "s",
        "Action": "lambda:InvokeFunction",
        "Principal": "s3.amazonaws.com",
    }
    before = aws.get_function_configuration(FunctionName="f")["RevisionId"]
    added = aws.add_permission(**wanted, SourceArn="arn:aws:s3:::bucket", SourceAccount="000000000000")
    assert status(added) == 201
    statement = {
        "Sid": "s",
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "lambda:InvokeFunction",
        "Resource": ARN,
        "Condition": {
            "StringEquals": {"AWS:SourceAccount": "000000000000"},
            "ArnLike": {"AWS:SourceArn": "arn:aws:s3:::bucket"},
        },
    }
    assert json.loads(added["Statement"]) == statement
    got = aws.get_policy(FunctionName="f")
    assert json.loads(got["Policy"]) == {"Version": "2012-10-17", "Id": "default", "Statement": [statement]}
    assert got["RevisionId"] == aws.get_function_configuration(FunctionName="f")["RevisionId"] != before
    assert refused(aws.add_permission, **wanted)[:2] == ("ResourceConflictException", 409)
    latest = refused(aws.add_permission, **{**wanted, "Qualifier": "$LATEST"})
    assert latest[2] == "We currently do not support adding policies for $LATEST."
    assert refused(aws.add_permission, **{**wanted, "Principal": "nobody", "StatementId": "t"})[1] == 400
    account = aws.add_permission(**{**wanted, "Principal": "123456789012", "Qualifier": "1"})
    assert json.loads(account["Statement"])["Principal"] == {"AWS": "arn:aws:iam::123456789012:root"}
    assert json.loads(account["Statement"])["Resource"] == f"{ARN}:1"
    url = {"StatementId": "u", "Principal": "*", "Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "NONE"}
    condition = json.loads(aws.add_permission(FunctionName="f", **url)["Statement"])["Condition"]
    assert condition == {"StringEquals": {"lambda:FunctionUrlAuthType": "NONE"}}
    assert refused(aws.remove_permission, FunctionName="f", StatementId="none")[:2] == (
        "ResourceNotFoundException",
        404,
    )
    for sid in ("s", "u"):
        assert status(aws.remove_permission(FunctionName="f", StatementId=sid)) == 204
    assert refused(aws.get_policy, FunctionName="f")[:2] == ("ResourceNotFoundException", 404)
    assert status(aws.remove_permission(FunctionName="f", StatementId="s", Qualifier="1")) == 204


def test_tags_are_kept_for_functions(aws: Any) -> None:
    make(aws, Tags={"team": "größe: a/b=c+d@e"})
    assert aws.get_function(FunctionName="f")["Tags"] == {"team": "größe: a/b=c+d@e"}
    assert refused(aws.tag_resource, Resource=ARN, Tags={"team": "<x>"})[0] == "ValidationException"
    assert status(aws.tag_resource(Resource=ARN, Tags={"stage": "dev"})) == 204
    assert aws.list_tags(Resource=ARN)["Tags"]["stage"] == "dev"
    assert status(aws.untag_resource(Resource=ARN, TagKeys=["team"])) == 204
    assert aws.get_function(FunctionName="f")["Tags"] == {"stage": "dev"}
    assert refused(aws.list_tags, Resource=f"{ARN}x")[:2] == ("ResourceNotFoundException", 404)
    assert refused(aws.list_tags, Resource=f"{ARN}:1")[:2] == ("InvalidParameterValueException", 400)
    too_many = {f"k{number}": "v" for number in range(50)}
    assert "exceeds resource tag limit of 50" in refused(aws.tag_resource, Resource=ARN, Tags=too_many)[2]


def test_the_account_counts_what_is_there(aws: Any) -> None:
    data = zipped()
    make(aws, Publish=True)
    make(aws, "g")
    aws.publish_layer_version(LayerName="l", Content={"ZipFile": data})
    got = aws.get_account_settings()
    assert got["AccountUsage"] == {"FunctionCount": 2, "TotalCodeSize": 4 * len(data)}
    assert got["AccountLimit"]["CodeSizeUnzipped"] == 262_144_000


def test_operations_that_are_not_here_answer_as_unknown_paths(aws: Any) -> None:
    assert refused(aws.list_code_signing_configs) == (
        "AccessDeniedException",
        403,
        "Unable to determine service/operation name to be authorized",
    )


def test_every_operation_of_the_control_plane_answers_as_the_model_says(wire: Wire) -> None:
    aws = wire.client()
    make(aws, Publish=True, Tags={"a": "b"})
    layer = aws.publish_layer_version(LayerName="l", Content={"ZipFile": zipped()})["LayerVersionArn"]
    f = {"FunctionName": "f"}
    live = f | {"Name": "live"}
    config = {"MaximumRetryAttempts": 0}
    aws.create_alias(**live, FunctionVersion="1")
    aws.create_function_url_config(**f, AuthType="NONE")
    aws.add_permission(**f, StatementId="s", Action="lambda:InvokeFunction", Principal="*")
    aws.put_function_concurrency(**f, ReservedConcurrentExecutions=5)
    aws.put_provisioned_concurrency_config(**f, Qualifier="live", ProvisionedConcurrentExecutions=1)
    aws.put_function_event_invoke_config(**f, **config)
    aws.tag_resource(Resource=ARN, Tags={"c": "d"})
    for name in ("functions", "layers"):
        getattr(aws, f"list_{name}")()
    for name in ("aliases", "function_event_invoke_configs", "function_url_configs", "versions_by_function"):
        getattr(aws, f"list_{name}")(**f)
    for name in ("", "_configuration", "_concurrency", "_code_signing_config", "_event_invoke_config", "_url_config"):
        getattr(aws, f"get_function{name}")(**f)
    aws.list_provisioned_concurrency_configs(**f)
    aws.list_layer_versions(LayerName="l")
    aws.list_tags(Resource=ARN)
    aws.get_account_settings()
    aws.get_alias(**live)
    aws.get_layer_version(LayerName="l", VersionNumber=1)
    aws.get_layer_version_by_arn(Arn=layer)
    aws.get_policy(**f)
    aws.get_provisioned_concurrency_config(**f, Qualifier="live")
    aws.publish_version(**f)
    aws.update_alias(**live, Description="d")
    aws.update_function_code(**f, ZipFile=zipped("x = 1"))
    settled(aws)
    change(aws, Layers=[layer])
    aws.update_function_event_invoke_config(**f, **config)
    aws.update_function_url_config(**f, AuthType="AWS_IAM")
    aws.untag_resource(Resource=ARN, TagKeys=["c"])
    aws.remove_permission(**f, StatementId="s")
    aws.delete_provisioned_concurrency_config(**f, Qualifier="live")
    aws.delete_layer_version(LayerName="l", VersionNumber=1)
    aws.delete_alias(**live)
    for name in ("_concurrency", "_event_invoke_config", "_url_config", ""):
        getattr(aws, f"delete_function{name}")(**f)
    assert wire.seen == set(OPERATIONS)
