"""
The certificate authority of an installation, and the certificates it has issued.

One folder holds all of it: ``authority.pem`` and ``authority-key.pem``, made at the
first start unless an operator has put their own there, and ``server.pem`` and
``server-key.pem``, which are made anew in time unless they are an operator's.  What
is ours is told by the name in it.

A pool's certificate says which pool it is for and which *generation* of the pool:
a reset begins a new one.  Whether that is still the current one, and whether the
key is the one that the pool has, the database knows.

Facts this module is built around:

- A certificate that is valid from "now" is not valid yet on a machine whose clock
  is behind; so validity begins some minutes earlier.
- OpenSSL takes an end-entity certificate for a client's only with clientAuth in its
  extended key usage, and strict verifiers want key identifiers in every one.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import re
import ssl
import stat

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificateIssuerPrivateKeyTypes,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from launcher import private_files
from launcher.certificates import is_due
from launcher.errors import StoreUnusable
from launcher.sealing.keys import PoolPublicKey


AUTHORITY_DAYS = 3650
SERVER_DAYS = 90
POOL_DAYS = 365
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which `ssl` has no name for."""
_EARLIER = timedelta(minutes=10)
_LOCAL = ("localhost", "127.0.0.1", "::1")
_OURS = "spacelift-launcher control plane"
_URN = "urn:spacelift-launcher:pool:"
_POOL = re.compile(rf"{_URN}(?P<generation>[0-9A-Z]{{26}}):(?P<name>.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bearer:
    """What a pool's certificate says about who shows it."""

    pool: str
    generation: str
    key: PoolPublicKey
    begins: datetime
    ends: datetime


class Authority:
    """Issues and reads certificates; several processes may use one folder."""

    def __init__(self, folder: Path) -> None:
        """
        Use the authority in *folder*; make one, with mode 0600, where there is none.

        Raises:
            StoreUnusable: files cannot be read or written, do not belong
                together, or others may read a key.
        """
        self._folder = folder
        self.server_certificate = folder / "server.pem"
        self.server_key = folder / "server-key.pem"
        with _translated(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._alone():
                self.certificate, self._key = self._own()
                self._serve_as(_LOCAL)
        self.pem = _pem(self.certificate)
        """The authority's certificate, for whoever must recognise the server."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate; names the installation."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def pool_certificate(self, pool: str, generation: str, key: PoolPublicKey) -> str:
        """A certificate, as PEM, for the workers of *pool*."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, pool[:64])])
        urn = x509.UniformResourceIdentifier(f"{_URN}{generation}:{pool}")
        certificate = self._issued(
            name, key.rsa, [urn], ExtendedKeyUsageOID.CLIENT_AUTH, POOL_DAYS
        )
        return _pem(certificate)

    def bearer(self, certificate: bytes) -> Bearer | None:
        """
        Who shows *certificate*, in DER; None unless it is one that we issued.

        Whether the key is theirs must have been proven, by the handshake or by a
        signature, and the dates are for the caller to compare.
        """
        try:
            shown = x509.load_der_x509_certificate(certificate)
            shown.verify_directly_issued_by(self.certificate)
            names = shown.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value.get_values_for_type(x509.UniformResourceIdentifier)
            key = shown.public_key()
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return None
        found = _POOL.fullmatch(names[0]) if len(names) == 1 else None
        if found is None or not isinstance(key, rsa.RSAPublicKey):
            return None
        return Bearer(
            pool=found["name"],
            generation=found["generation"],
            key=PoolPublicKey(key),
            begins=shown.not_valid_before_utc,
            ends=shown.not_valid_after_utc,
        )

    def serve_as(self, host: str) -> None:
        """
        Let the server be known as *host*, too.

        Raises:
            StoreUnusable: the server's certificate is an operator's, and not for
                that host.
        """
        with _translated(self._folder), self._alone():
            self._serve_as([host])

    def renew(self) -> None:
        """Replace the server's certificate in time, if it is one of ours."""
        with _translated(self._folder), self._alone():
            self._serve_as(())

    def expiries(self) -> dict[str, datetime]:
        """When the certificates of the authority and of the server expire."""
        return {
            "authority": self.certificate.not_valid_after_utc,
            "server": _read(self.server_certificate).not_valid_after_utc,
        }

    def server_context(self) -> ssl.SSLContext:
        """
        TLS 1.3 for the workers' listener; only our pools' workers get in.

        Dates are not looked at here: asyncio does not tell a client why it ended
        a handshake, and a launcher should learn that its certificate expired.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # An operator's authority may itself have been certified by another.
        context.verify_flags |= _NO_CHECK_TIME | ssl.VERIFY_X509_PARTIAL_CHAIN
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self.pem)
        self.present(context)
        return context

    def present(self, context: ssl.SSLContext) -> None:
        """Let new connections of *context* see the server's newest certificate."""
        with _translated(self._folder), self._alone():
            context.load_cert_chain(self.server_certificate, self.server_key)

    def _own(self) -> tuple[x509.Certificate, CertificateIssuerPrivateKeyTypes]:
        path, key_path = (
            self._folder / "authority.pem",
            self._folder / "authority-key.pem",
        )
        # Two names cannot appear at once, and we may end between them.
        made = self._folder / "authority-key.pem.made"
        if not path.exists() and not key_path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            private_files.write(made, _key_pem(key))
            private_files.write(path, _pem(_self_signed(key)).encode())
        if made.exists() and not key_path.exists():
            made.replace(key_path)
        certificate, signing = _read(path), _read_key(key_path)
        if certificate.public_key() != signing.public_key():
            raise StoreUnusable(f"{path} and {key_path} do not belong together")
        return certificate, signing

    def _serve_as(self, hosts: Iterable[str]) -> None:
        known: set[str] = set()
        if self.server_certificate.exists():
            current = _read(self.server_certificate)
            known = _hosts(current)
            whole = self._belongs_together(current)
            if not _is_ours(current):
                if not whole:
                    raise StoreUnusable(
                        f"{self.server_certificate} is not by the authority, or not"
                        f" for the key {self.server_key}"
                    )
                if missing := {host for host in hosts if not _covers(known, host)}:
                    raise StoreUnusable(
                        f"{self.server_certificate} is not for host"
                        f" {', '.join(sorted(missing))}"
                    )
                return
            if whole and known.issuperset(hosts) and not is_due(current):
                return
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _OURS)])
        certificate = self._issued(
            name,
            key.public_key(),
            [_general_name(host) for host in sorted(known | set(hosts))],
            ExtendedKeyUsageOID.SERVER_AUTH,
            SERVER_DAYS,
        )
        private_files.write(self.server_key, _key_pem(key))
        private_files.write(self.server_certificate, _pem(certificate).encode())

    def _belongs_together(self, current: x509.Certificate) -> bool:
        """
        Whether the server's certificate is by our authority and for the key beside it.

        It is not when we ended between the two files, or after the authority was
        replaced.
        """
        if not self.server_key.exists():
            return False
        key = _read_key(self.server_key)
        try:
            current.verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return current.public_key() == key.public_key()

    def _issued(
        self,
        name: x509.Name,
        key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
        names: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        days: int,
    ) -> x509.Certificate:
        ends = datetime.now(UTC) + timedelta(days=days)
        last = self.certificate.not_valid_after_utc
        if last < datetime.now(UTC):
            raise StoreUnusable(
                f"the authority's certificate in {self._folder} expired on"
                f" {last:%Y-%m-%d}, so nothing can be issued by it"
            )
        return (
            _beginning(name, key)
            .issuer_name(self.certificate.subject)
            .not_valid_after(min(ends, last))
            .add_extension(
                x509.BasicConstraints(ca=False, path_length=None), critical=True
            )
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(self._authority_identifier(), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _authority_identifier(self) -> x509.AuthorityKeyIdentifier:
        """What the authority calls its key, which need not be the key's SHA-1."""
        identifier = x509.AuthorityKeyIdentifier
        try:
            named = self.certificate.extensions.get_extension_for_class(
                x509.SubjectKeyIdentifier
            )
        except x509.ExtensionNotFound:
            return identifier.from_issuer_public_key(
                self.certificate.public_key()  # type: ignore[arg-type]
            )
        return identifier.from_issuer_subject_key_identifier(named.value)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """``pool create`` changes files while a server runs."""
        descriptor = os.open(
            self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StoreUnusable(
            f"the certificates in {folder} cannot be used: {exc.strerror}"
        ) from exc


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "spacelift-launcher authority")]
    )
    return (
        _beginning(name, key.public_key())
        .issuer_name(name)
        .not_valid_after(datetime.now(UTC) + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _beginning(
    name: x509.Name, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _EARLIER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hosts(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        return set()
    addresses = names.get_values_for_type(x509.IPAddress)
    return {*names.get_values_for_type(x509.DNSName), *map(str, addresses)}


def _covers(names: set[str], host: str) -> bool:
    """Whether a certificate for *names*, some maybe with a star, is for *host* too."""
    return host in _LOCAL or host in names or f"*.{host.partition('.')[2]}" in names


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _is_ours(certificate: x509.Certificate) -> bool:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return [name.value for name in names] == [_OURS]


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as exc:
        raise StoreUnusable(f"{path} is not a certificate in PEM") from exc


def _read_key(path: Path) -> CertificateIssuerPrivateKeyTypes:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise StoreUnusable(f"others may read the key {path}; make it 0600")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as exc:
        raise StoreUnusable(
            f"{path} is not a private key in PEM without a passphrase"
        ) from exc
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise StoreUnusable(f"{path} is neither an RSA key nor one on a curve")
    return key
