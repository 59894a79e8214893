"""
The one place where clients of AWS are made, and all that it needs of boto3.

Facts this is built around:

- Clients may be shared among threads; what makes them may not.  A job may bring any
  region, so not all can be made at the start: a lock stands for the main thread.
- To take on a role, boto3 makes a client of its own when it needs the identity.
- boto3 keeps the addresses of every service in every region, and the description of
  all that a service can do: 9 MB, of which a request for a token needs next to nothing.
- It takes further authorities as a file, and reads that for every connection.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import threading
import weakref

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import msgspec

from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import get_cert_path
from botocore.loaders import JSONFileLoader, create_loader

from launcher.ecr import EcrEndpoint
from launcher.memory import give_back


FAILURES = (BotoCoreError, ClientError)
"""What a client raises when it cannot have an answer, or has one that says no."""

_ROLE_SESSION = "spacelift-launcher"
_CONNECT_SECONDS, _ANSWER_SECONDS, _ATTEMPTS = 5, 10, 3

_Service = dict[str, Any] | msgspec.UnsetType


class _Services(msgspec.Struct):
    """What is asked for tokens, and for identities."""

    ecr: _Service = msgspec.field(default=msgspec.UNSET, name="api.ecr")
    ecr_public: _Service = msgspec.field(default=msgspec.UNSET, name="api.ecr-public")
    sts: _Service = msgspec.UNSET
    sso: _Service = msgspec.field(default=msgspec.UNSET, name="portal.sso")
    oidc: _Service = msgspec.UNSET


class _Partition(msgspec.Struct, rename="camel"):
    """One part of AWS, as boto3's list of addresses has it."""

    defaults: dict[str, Any]
    dns_suffix: str
    partition: str
    partition_name: str
    region_regex: str
    regions: dict[str, Any]
    services: _Services


class _Addresses(msgspec.Struct):
    partitions: list[_Partition]
    version: int


class AwsClients:
    """Makes clients for one identity of this machine, one client at a time."""

    def __init__(
        self, assume_role: str | None = None, *, roots: Sequence[str] = ()
    ) -> None:
        """
        With *assume_role* they act as that role.

        *roots* are authorities, in PEM, to trust besides those that boto3 trusts.
        """
        self._role = assume_role
        self._roots = roots
        self._bundle: str | None = None
        # Whoever makes a client may find that the role needs one, too.
        self._lock = threading.RLock()
        self._session: boto3.Session | None = None

    def for_tokens(self, endpoint: EcrEndpoint) -> Any:  # noqa: ANN401
        """
        Return a new client that *endpoint*'s tokens can be asked of.

        Raises:
            BotoCoreError: the configuration of this machine admits of none.
            OSError: the certificates that it names cannot be read.
        """
        with self._lock:
            if self._session is None:
                self._session = self._identified(endpoint.region)
            client = self._session.client(
                "ecr-public" if endpoint.public else "ecr",
                region_name=endpoint.region,
                config=Config(
                    connect_timeout=_CONNECT_SECONDS,
                    read_timeout=_ANSWER_SECONDS,
                    retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                    use_fips_endpoint=endpoint.fips or None,
                    use_dualstack_endpoint=endpoint.dual_stack or None,
                ),
            )
        give_back()
        return client

    def _identified(self, region: str) -> boto3.Session:
        """AWS's own chain of identities, and the role on top of what it finds."""
        machine = self._plain()
        if self._role is None:
            return boto3.Session(botocore_session=machine)
        if machine.get_config_variable("region") is None:
            machine.set_config_variable("region", region)
        assuming = self._plain()
        assuming.get_component("credential_provider").insert_before(
            "env", _AssumedRole(self, machine, self._role)
        )
        return boto3.Session(botocore_session=assuming)

    def _plain(self) -> Any:  # noqa: ANN401
        session = botocore.session.get_session()
        loader = create_loader(session.get_config_variable("data_path"))
        loader.file_loader = FrugalLoader()
        session.register_component("data_loader", loader)
        if self._roots:
            session.set_config_variable("ca_bundle", self._authorities(session))
        return session

    def _authorities(self, session: Any) -> str:  # noqa: ANN401
        """Name a file in memory with all authorities; it lasts as long as we do."""
        if self._bundle is None:
            known = get_cert_path(session.get_config_variable("ca_bundle") or True)
            content = "\n".join([Path(known).read_text(encoding="utf-8"), *self._roots])
            descriptor = os.memfd_create("authorities", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            with os.fdopen(os.dup(descriptor), "w", encoding="utf-8") as file:
                file.write(content)
            self._bundle = f"/proc/self/fd/{descriptor}"
        return self._bundle

    def for_role(self, machine: Any, *given: Any, **further: Any) -> Any:  # noqa: ANN401
        """Make the client by which a role is taken on."""
        with self._lock:
            return machine.create_client(*given, **further)


class _AssumedRole(CredentialProvider):  # type: ignore[misc, unused-ignore]
    METHOD = CANONICAL_NAME = _ROLE_SESSION

    def __init__(self, clients: AwsClients, machine: Any, role: str) -> None:  # noqa: ANN401
        super().__init__()
        self._clients, self._machine, self._role = clients, machine, role

    def load(self) -> DeferredRefreshableCredentials:
        fetcher = AssumeRoleCredentialFetcher(
            lambda *given, **further: self._clients.for_role(
                self._machine, *given, **further
            ),
            self._machine.get_credentials(),
            self._role,
            extra_args={"RoleSessionName": _ROLE_SESSION},
        )
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)


class FrugalLoader(JSONFileLoader):  # type: ignore[misc, unused-ignore]
    """Reads of the list of addresses what is about our services, and skips the rest."""

    def load_file(self, file_path: str) -> Any:  # noqa: ANN401
        content = _content(file_path) if Path(file_path).name == "endpoints" else None
        if content is not None:
            # A list of another shape is read as boto3 does.
            with contextlib.suppress(msgspec.ValidationError):
                found = msgspec.json.decode(content, type=_Addresses)
                return msgspec.to_builtins(found)
        return super().load_file(file_path)


def _content(file_path: str) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"{file_path}.json").read_bytes()
    with contextlib.suppress(FileNotFoundError):
        return gzip.decompress(Path(f"{file_path}.json.gz").read_bytes())
    return None
