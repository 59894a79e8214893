"""
The worker protocol as an OpenAPI document, made from the types themselves.

``python -m launcher.controlplane.openapi > docs/openapi.yaml`` writes the file
that ships; a test compares the two.
"""

from __future__ import annotations

import sys

from typing import Any

import msgspec
import yaml

from launcher.controlplane.worker_api import STATUS
from launcher.wire import messages as m
from launcher.wire.jobs import Job, Tokens


Document = dict[str, Any]
Kind = type[Any]

_JOB = "/jobs/{job}"
_ENDPOINTS: tuple[tuple[str, str, str, Kind | None, Kind, bool], ...] = (
    (
        "post",
        "/certificate",
        "Get a certificate that lasts longer.",
        m.CertificateRequest,
        m.CertificateIssued,
        False,
    ),
    ("post", "/workers", "Register a slot.", m.Registration, m.Registered, False),
    (
        "post",
        "/workers/{worker}/poll",
        "Wait for a job.",
        m.Poll,
        m.Polled,
        False,
    ),
    ("post", f"{_JOB}/claim", "Take a job.", m.ClaimRequest, m.Claimed, False),
    ("post", f"{_JOB}/renew", "Extend the lease.", None, m.Ack, True),
    ("put", f"{_JOB}/log", "Store output.", bytes, m.LogAck, True),
    ("post", f"{_JOB}/state", "Enter a state.", m.StateReport, m.Ack, True),
    ("post", f"{_JOB}/plan", "Report a plan.", m.PlanReport, m.PlanAnswer, True),
    ("post", f"{_JOB}/outputs", "Report outputs.", m.OutputsReport, m.Ack, True),
    (
        "put",
        f"{_JOB}/workspace",
        "Send a part of the workspace.",
        bytes,
        m.WorkspaceAck,
        True,
    ),
    (
        "post",
        f"{_JOB}/workspace",
        "Store the workspace that was sent.",
        m.WorkspaceUploaded,
        m.WorkspaceStored,
        True,
    ),
    (
        "post",
        f"{_JOB}/workspace/part",
        "Ask where a part of the workspace may go.",
        m.WorkspacePart,
        m.WorkspacePlace,
        True,
    ),
    ("get", f"{_JOB}/workspace", "Get the stored workspace.", None, bytes, True),
    ("post", f"{_JOB}/tokens", "Get fresh tokens.", None, m.TokensIssued, True),
    ("get", f"{_JOB}/source", "Get the uploaded code.", None, bytes, True),
    ("post", f"{_JOB}/settle", "End the job.", m.Settlement, m.Ack, True),
)


def document() -> Document:
    """The whole document."""
    kinds: set[Kind] = {m.Failure} | {
        kind
        for _, _, _, body, answer, _ in _ENDPOINTS
        for kind in (body, answer)
        if kind is not None and kind is not bytes
    }
    kinds |= {Job, Tokens}  # these travel sealed, so no endpoint shows them
    kinds.add(m.WorkspaceSource)  # in place of bytes, for who accepts it
    ordered = sorted(kinds, key=lambda kind: kind.__name__)
    _, components = msgspec.json.schema_components(
        ordered, ref_template="#/components/schemas/{name}"
    )
    paths: Document = {}
    for method, path, summary, body, answer, fenced in _ENDPOINTS:
        paths.setdefault(m.PREFIX + path, {})[method] = _operation(
            method, path, summary, body, answer, fenced=fenced
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "spacelift-launcher worker protocol",
            "version": str(m.PROTOCOL_VERSION),
            "description": "Explained in docs/protocol.md.",
        },
        "security": [{"poolCertificate": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"poolCertificate": {"type": "mutualTLS"}},
            "schemas": dict(sorted(components.items())),
            "responses": {"Refused": _refused()},
        },
    }


def text() -> str:
    """The document as it is written to ``docs/openapi.yaml``."""
    return yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=88)


def _operation(
    method: str,
    path: str,
    summary: str,
    body: Kind | None,
    answer: Kind,
    *,
    fenced: bool,
) -> Document:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [_parameter(name, "path") for name in names]
    parameters.append(_parameter(m.VERSION_HEADER, "header"))
    if fenced:
        parameters.append(_parameter(m.TOKEN_HEADER, "header"))
    if (method, path) == ("put", f"{_JOB}/workspace"):
        parameters.append(_parameter("upload", "query"))
    if method == "put":
        parameters.append(_parameter("offset", "query", {"type": "integer"}))
    if answer is bytes:
        parameters.append(_parameter("Range", "header") | {"required": False})
    if (method, path) == ("put", f"{_JOB}/log"):
        checksum = _parameter(m.CHECKSUM_HEADER, "header")
        parameters.append(checksum | {"required": False})
    operation: Document = {"summary": summary, "parameters": parameters}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body)}
    done: Document = {"description": "Done.", "content": _content(answer)}
    if answer is bytes:
        done["content"] |= {
            m.SOURCE_TYPE: {"schema": {"$ref": "#/components/schemas/WorkspaceSource"}}
        }
        done["headers"] = {m.CHECKSUM_HEADER: {"schema": {"type": "string"}}}
    operation["responses"] = {"200": done}
    if answer is bytes:
        operation["responses"]["206"] = done | {
            "description": "The part in question.",
            "content": _content(bytes),
        }
    operation["responses"]["default"] = {"$ref": "#/components/responses/Refused"}
    return operation


def _parameter(name: str, place: str, schema: Document | None = None) -> Document:
    return {
        "name": name,
        "in": place,
        "required": True,
        "schema": schema or {"type": "string"},
    }


def _content(kind: Kind) -> Document:
    if kind is bytes:
        return {"application/octet-stream": {}}
    return {
        "application/json": {
            "schema": {"$ref": f"#/components/schemas/{kind.__name__}"}
        }
    }


def _refused() -> Document:
    codes = ", ".join(f"{code.value} ({status})" for code, status in STATUS.items())
    return {
        "description": f"Refused. Codes and their statuses: {codes}.",
        "content": _content(m.Failure),
    }


if __name__ == "__main__":
    sys.stdout.write(text())
