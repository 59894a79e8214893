"""
A worker pool's key pair: RSA, at least 3072 bits.

The private half never leaves the operator's machines.  It proves who a worker is,
opens what was sealed to the pool, and signs what the pool will trust later.  The
public half is all that the control plane ever has.
"""

from __future__ import annotations

import hashlib

from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from launcher.errors import PoolKeyUnusable, SealBroken


SMALLEST = 3072
"""Bits of a key, at least."""
_LARGEST = 16384
_NEW = 4096
_TRIAL = b"a trial"
_DERIVED = 32
_DAMAGED = "the pool's private key is not a private key in PEM, or is damaged"

_OAEP = padding.OAEP(
    mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None
)
_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)


class PoolPublicKey:
    """Seals to a pool and checks its signatures.  Safe to share between threads."""

    def __init__(self, key: rsa.RSAPublicKey) -> None:
        """
        Raises:
            PoolKeyUnusable: it has too few bits, or absurdly many.
        """
        if key.key_size < SMALLEST:
            raise PoolKeyUnusable(
                f"the pool's key has {key.key_size} bits; at least {SMALLEST} are"
                " needed, as made by `openssl genrsa 4096`"
            )
        if key.key_size > _LARGEST:
            raise PoolKeyUnusable(f"the pool's key has more than {_LARGEST} bits")
        self.rsa = key
        der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.fingerprint = hashlib.sha256(der).hexdigest()
        """SHA-256 of the SubjectPublicKeyInfo, in hexadecimal digits."""

    @classmethod
    def of(cls, bearer: x509.Certificate | x509.CertificateSigningRequest) -> Self:
        """
        The key that a certificate, or the request for one, is about.

        Raises:
            PoolKeyUnusable: it is not an RSA key, or not a good one.
        """
        try:
            key = bearer.public_key()
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise PoolKeyUnusable("the pool's key cannot be understood") from exc
        if not isinstance(key, rsa.RSAPublicKey):
            raise PoolKeyUnusable("the pool's key is not an RSA key")
        return cls(key)

    def wrap(self, secret: bytes) -> bytes:
        """Encrypt a short *secret*, such as a data key: RSA-OAEP with SHA-256."""
        return self.rsa.encrypt(secret, _OAEP)

    def has_signed(self, signature: bytes, data: bytes) -> bool:
        """Whether *signature* over *data* was made with the private half."""
        try:
            self.rsa.verify(signature, data, _PSS, hashes.SHA256())
        except InvalidSignature:
            return False
        return True


class PoolKey:
    """The private half.  Safe to share between threads; shows nothing of itself."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self.public = PoolPublicKey(key.public_key())
        self.rsa = key

    @classmethod
    def read(cls, pem: bytes) -> Self:
        """
        Read a private key without a passphrase.

        Raises:
            PoolKeyUnusable: with one sentence about what it is instead.
        """
        if not pem.lstrip().startswith(b"-----BEGIN "):
            raise PoolKeyUnusable(_not_pem(pem))
        if b"ENCRYPTED" in pem:
            raise PoolKeyUnusable(
                "the pool's private key is encrypted; give it without a passphrase"
            )
        try:
            # OpenSSL would look for factors of the primes, for half a second at each
            # start; what a damaged key is found out by costs a hundredth of that.
            key = serialization.load_pem_private_key(
                pem, password=None, unsafe_skip_rsa_key_validation=True
            )
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise PoolKeyUnusable(_DAMAGED) from exc
        if not isinstance(key, rsa.RSAPrivateKey):
            raise PoolKeyUnusable("the pool's private key is not an RSA key")
        read = cls(key)
        if not read.is_whole():
            raise PoolKeyUnusable(_DAMAGED)
        return read

    @classmethod
    def make(cls) -> Self:
        """A new key of 4096 bits."""
        return cls(rsa.generate_private_key(public_exponent=65537, key_size=_NEW))

    def is_whole(self) -> bool:
        """Whether the key's numbers belong together, and it does what it should."""
        numbers = self.rsa.private_numbers()
        p, q, d = numbers.p, numbers.q, numbers.d
        public = numbers.public_numbers
        consistent = (
            min(p, q, public.e) > 2
            and p & q & public.e & 1 == 1
            and p * q == public.n
            and public.e * d % (p - 1) == 1
            and public.e * d % (q - 1) == 1
            and (numbers.dmp1, numbers.dmq1) == (d % (p - 1), d % (q - 1))
            and numbers.iqmp * q % p == 1
        )
        if not consistent:
            return False
        # Whatever is not prime in it does not survive a round trip.
        try:
            return self.public.has_signed(self.sign(_TRIAL), _TRIAL)
        except ValueError:
            return False

    def pem(self) -> bytes:
        """The key as PKCS#8 in PEM, for its owner to keep."""
        return self.rsa.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def unwrap(self, wrapped: bytes) -> bytes:
        """
        Decrypt what `PoolPublicKey.wrap` made.

        Raises:
            SealBroken: it was made for another key, or changed since.
        """
        try:
            return self.rsa.decrypt(wrapped, _OAEP)
        except ValueError as exc:
            raise SealBroken(
                "what was sealed cannot be opened with this pool's key"
            ) from exc

    def sign(self, data: bytes) -> bytes:
        """RSA-PSS with SHA-256 and a salt of 32 bytes."""
        return self.rsa.sign(data, _PSS, hashes.SHA256())

    def derived(self, purpose: str) -> bytes:
        """A secret of 32 bytes for one *purpose*, the same at any time."""
        whole = self.rsa.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        kdf = HKDF(hashes.SHA256(), _DERIVED, salt=None, info=purpose.encode())
        return kdf.derive(whole)

    def __repr__(self) -> str:
        return f"PoolKey({self.public.fingerprint[:16]}…)"


def _not_pem(key: bytes) -> str:
    try:
        serialization.load_der_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "the pool's private key is not a PEM file"
    return (
        "the pool's private key is in DER; PEM is wanted, as made by"
        " `openssl pkey -inform DER -in key.der`"
    )
