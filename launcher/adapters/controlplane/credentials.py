"""
What a launcher proves to the control plane that it is one of the pool's.

Facts this module is built around:

- `ssl` reads keys from files only.  Ours comes from memory that has a name below
  ``/proc`` and never touches a disk.
- The certificate in the token is as old as the token.  A newer one, for the same
  key, is asked for in time and kept in the state directory.
"""

from __future__ import annotations

import os
import ssl
import typing

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization

from launcher import private_files
from launcher.errors import (
    CredentialsRefused,
    PoolKeyUnusable,
    ServerNotTrusted,
    StateDirectoryUnusable,
)
from launcher.identity import Identity, require_valid
from launcher.sealing.keys import PoolKey, PoolPublicKey
from launcher.wire.messages import PoolToken, Proof


if typing.TYPE_CHECKING:
    from launcher.wire.signatures.signer import RequestSigner

log = structlog.get_logger()

_DER = serialization.Encoding.DER


class Credentials:
    """The pool's key and its newest certificate.  Safe to share between threads."""

    def __init__(
        self, identity: Identity, kept: Path, *, roots: Iterable[str] = ()
    ) -> None:
        """
        Use the newer of the token's certificate and the one in the file *kept*.

        *roots* are further authorities, in PEM, that a proxy's certificate may be
        by; the control plane's own is recognised by the token alone.

        Raises:
            CertificateExpired: neither is valid any more.
            ClockWrong: neither is valid yet.
        """
        self.token: PoolToken = identity.token
        self.key: PoolKey = identity.key
        self._kept = kept
        self._roots = tuple(roots)
        self._signer: RequestSigner | None = None
        self._authority = identity.authority
        self._given = identity.certificate
        candidates = [self._given, *self._earlier()]
        self.certificate = max(candidates, key=lambda each: each.not_valid_after_utc)
        require_valid(self.certificate)

    def context(self) -> ssl.SSLContext:
        """TLS 1.3, with the pool's certificate unless requests are signed instead."""
        if self.token.proof is Proof.SIGNATURE:
            context = ssl.create_default_context()
            for root in self._roots:
                context.load_verify_locations(cadata=root)
            return context
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The authority may itself have been certified, by one that does not count.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=self._authority.public_bytes(_DER))
        with _nameless(self.key.pem()) as key, _nameless(self._pem()) as certificate:
            context.load_cert_chain(certificate, key)
        return context

    def signature(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> dict[str, str]:
        """The headers that prove a request where no handshake does; else none."""
        if self.token.proof is Proof.CERTIFICATE:
            return {}
        if self._signer is None:
            # Late: only a few launchers need what it is made of.
            from launcher.wire.signatures.signer import RequestSigner  # noqa: PLC0415

            installation = self._authority.fingerprint(hashes.SHA256()).hex()
            self._signer = RequestSigner(self.key, self._pem().decode(), installation)
        return self._signer.headers(method, target, headers, body=body)

    def expires(self) -> float:
        """When the certificate of now ends, in seconds since 1970."""
        return self.certificate.not_valid_after_utc.timestamp()

    def trouble(self) -> str | None:
        """Why the certificate is of no use now; None while it is."""
        try:
            require_valid(self.certificate)
        except CredentialsRefused as exc:
            return str(exc)
        return None

    def request(self) -> str:
        """A signing request in PEM for a certificate that lasts longer."""
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(self.certificate.subject)
            .sign(self.key.rsa, hashes.SHA256())
        )
        return request.public_bytes(serialization.Encoding.PEM).decode()

    def renewed(self, pem: str) -> None:
        """
        Use the certificate that came for a request, now and after a restart.

        Raises:
            ServerNotTrusted: it is not one for this pool and its key.
            StateDirectoryUnusable: it cannot be kept.
        """
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
        except ValueError:
            certificate = None
        if certificate is None or not self._is_of_use(certificate):
            raise ServerNotTrusted(
                "the certificate that the control plane has issued is not for this"
                " worker pool's key, or not by its authority"
            )
        self.certificate = certificate
        self._signer = None
        try:
            private_files.write(self._kept, self._pem())
        except OSError as exc:
            raise StateDirectoryUnusable(
                f"{self._kept} cannot be written: {exc.strerror}"
            ) from exc

    def _earlier(self) -> Iterator[x509.Certificate]:
        """The certificate of an earlier renewal, if it is of use to this token."""
        try:
            earlier = x509.load_pem_x509_certificate(self._kept.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            log.warning("certificate.unreadable", file=str(self._kept), exc_info=True)
            return
        if self._is_of_use(earlier):
            yield earlier

    def _is_of_use(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._authority)
            fingerprint = PoolPublicKey.of(certificate).fingerprint
        except (ValueError, TypeError, InvalidSignature, PoolKeyUnusable):
            return False
        # Two pools may have the same key, and one that was reset may have it again.
        return fingerprint == self.key.public.fingerprint and _bearers(
            certificate
        ) == _bearers(self._given)

    def _pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def _bearers(certificate: x509.Certificate) -> list[str]:
    """Which pool, and which generation of it, a certificate names."""
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except (ValueError, x509.ExtensionNotFound):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


@contextmanager
def _nameless(content: bytes) -> Iterator[str]:
    """A file in memory that only this process can open, by the path yielded."""
    descriptor = os.memfd_create("pool", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
