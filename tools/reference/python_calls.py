"""Generate the reference of the Python API from the signatures and docstrings of its calls."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import niso
from niso.api.host import Host
from niso.api.host_attachments import Attachments
from niso.api.host_cluster import Clusters
from niso.api.host_kubernetes import Kubernetes
from niso.api.host_networks import Networks
from niso.api.host_services import Services
from niso.api.host_stacks import Stacks
from niso.api.host_volumes import Volumes
from reference.document import Block, Code, Heading, Text

_PARTS: tuple[tuple[str, type], ...] = (
    ("host", Host),
    ("host.services", Services),
    ("host.networks", Networks),
    ("host.stacks", Stacks),
    ("host.volumes", Volumes),
    ("host.attachments", Attachments),
    ("host.cluster", Clusters),
    ("host.kubernetes", Kubernetes),
)
_FUNCTIONS = ("connect", "validate", "import_compose", "manifest_schema", "stack_schema", "plain")


def page_blocks() -> Iterator[Block]:
    """Return the page: functions of the module, then the methods of each part of a host."""
    yield Text(
        "The guide to Python explains these calls with examples. Results are named tuples, with "
        "the fields of the JSON output. A failed call raises `niso.Error` or one of its subclasses."
    )
    yield Heading("niso")
    for name in _FUNCTIONS:
        yield from _call(f"niso.{name}", getattr(niso, name))
    for place, part in _PARTS:
        yield Heading(place)
        yield from _texts(part)
        for name, member in vars(part).items():
            if not name.startswith("_") and inspect.isfunction(member) and member.__doc__:
                yield from _call(f"{place}.{name}", member)


def _call(name: str, function: object) -> Iterator[Block]:
    assert callable(function)
    yield Heading(f"`{name}`", 2)
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != "self"]
    whole = str(signature.replace(parameters=parameters)).replace("'", "")
    short = f"{name.rpartition('.')[2]}{whole}"
    if len(short) > 90:
        listed: list[str] = []
        for each in parameters:
            first = each.kind is each.KEYWORD_ONLY and not any(
                other.kind in (each.VAR_POSITIONAL, each.KEYWORD_ONLY)
                for other in parameters[: parameters.index(each)]
            )
            listed += ["*", str(each)] if first else [str(each)]
        lines = "".join(f"    {one},\n" for one in listed).replace("'", "")
        short = f"{name.rpartition('.')[2]}(\n{lines}) -> {str(whole).rpartition(' -> ')[2]}"
    yield Code(short, "python")
    yield from _texts(function)


def _texts(documented: object) -> Iterator[Text]:
    for paragraph in (inspect.getdoc(documented) or "").split("\n\n"):
        yield Text(re.sub(r"``?", "`", " ".join(paragraph.split())))
