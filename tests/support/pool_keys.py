"""Keys of worker pools, made once because making them takes long; worth nothing."""

import base64

from pathlib import Path

import msgspec

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from given import A_KEY

from launcher.adapters.controlplane.credentials import Credentials
from launcher.identity import Identity
from launcher.sealing.keys import PoolKey
from launcher.wire.messages import PoolToken, Proof


_DATA = Path(__file__).parents[1] / "data"

KEY = A_KEY
OTHER_KEY = PoolKey.read((_DATA / "other-pool.key").read_bytes())


def credentials(plane, endpoint, pool, *, key=KEY, certificate="", proof="certificate"):
    """What a launcher of *pool* has; the pool gets *key* unless it has a certificate."""
    token = PoolToken(
        endpoint=endpoint,
        pool=pool,
        authority=plane.authority.pem,
        certificate=certificate or plane.pools.create(pool, key.public),
        allowed_hosts=("127.0.0.1",),
        proof=Proof(proof),
    )
    return Credentials(Identity(token=token, key=key), Path("/nonexistent"))


def request(folder, key=KEY):
    """A file with a certificate signing request by *key*."""
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key.rsa, hashes.SHA256())
    )
    file = folder / f"{key.public.fingerprint[:8]}.csr"
    file.write_bytes(csr.public_bytes(serialization.Encoding.PEM))
    return file


def token_of(made):
    """What is in a printed pool token."""
    return msgspec.json.decode(base64.b64decode(made.token), type=PoolToken)


def credentials_of(made, key=KEY):
    """What a launcher has that was given a printed pool token and its key."""
    return Credentials(Identity(token=token_of(made), key=key), Path("/nonexistent"))
