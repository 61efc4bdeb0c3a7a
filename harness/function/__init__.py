"""The function: code plus configuration, whatever form the user names it in. Must not know engines or sandboxes.

`load` reads a SOURCE (a directory with function.toml, a plain directory or zip, ``template.yaml:LogicalId``,
``image:NAME``) and judges it as Lambda would; `Package` lays its code and layers out where a container can mount them.
"""

from __future__ import annotations

from harness.function.model import (
    ARCHITECTURES,
    RECEIVERS,
    RESERVED_ENVIRONMENT,
    Code,
    DirectoryCode,
    Function,
    ImageCode,
    InlineCode,
    Overrides,
    ZipCode,
    host_architecture,
)
from harness.function.package import Laid, Package
from harness.function.source import load

__all__ = [
    "ARCHITECTURES",
    "RECEIVERS",
    "RESERVED_ENVIRONMENT",
    "Code",
    "DirectoryCode",
    "Function",
    "ImageCode",
    "InlineCode",
    "Laid",
    "Overrides",
    "Package",
    "ZipCode",
    "host_architecture",
    "load",
]
