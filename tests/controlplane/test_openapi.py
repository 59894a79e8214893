"""The document that describes the worker protocol."""

from types import SimpleNamespace

import yaml

from controlplane.site import ROOT
from launcher.controlplane import openapi
from launcher.controlplane.bell import Bell
from launcher.controlplane.lanes import Lane
from launcher.controlplane.proofs import by_handshake
from launcher.controlplane.worker_api import STATUS, WorkerApi, WorkerServices
from launcher.wire.messages import ErrorCode


def test_the_shipped_document_is_the_generated_one():
    """If not: python -m launcher.controlplane.openapi > docs/openapi.yaml."""
    assert (ROOT / "docs" / "openapi.yaml").read_text() == openapi.text()


def test_it_describes_the_routes_that_there_are():
    """No endpoint is missing from it, and none is invented."""
    names = WorkerServices.__annotations__
    nothing = SimpleNamespace(**dict.fromkeys(names))
    api = WorkerApi(nothing, Bell(), Lane(1), by_handshake)
    routes = {
        (route.path, method.lower())
        for route in api.routes()
        for method in route.methods - {"HEAD"}
    }
    paths = yaml.safe_load(openapi.text())["paths"]
    assert routes == {(path, method) for path, each in paths.items() for method in each}


def test_every_code_has_a_status():
    """A refusal never ends in a crash because nobody thought of its status."""
    assert set(STATUS) == set(ErrorCode)


def test_the_protocol_page_names_every_code_and_path():
    """The prose follows the code."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    for code in ErrorCode:
        assert f"`{code.value}`" in text
    for path in openapi.document()["paths"]:
        assert path.removeprefix("/worker/v1") in text
