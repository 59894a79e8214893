"""
Workspaces between two jobs: compressed, encrypted to their pool and signed by it.

    offset    bytes
    0         4       "SLW1"
    4         8       number of chunks, big endian like every number here
    12        32      SHA-256 of the plan
    44        4       length of the description, L
    48        L       description: JSON, see `Label` and `_Description`
    48+L      2       length of the signature, S
    50+L      S       RSA-PSS signature of everything before its length
    50+L+S    …       chunks: AES-256-GCM ciphertext and tag, 1 MiB of plain text each,
                      and what is left in the last one

Together the chunks are one zstd frame, and that is a tar archive.  A chunk's nonce is
three zero bytes, its number in eight, and 1 in the last chunk or else 0; the SHA-256 of
the description is bound to each of them.  The data key is in the description, wrapped
for the pool, and is used for one workspace only.
"""

from __future__ import annotations

import hashlib
import os
import secrets

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import msgspec
import zstandard

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from launcher.errors import SealBroken
from launcher.heartbeat import beat
from launcher.sealing import box
from launcher.sealing.keys import PoolKey


CHUNK = 1 << 20
"""Bytes of plain text in every chunk but the last."""

_MAGIC = b"SLW1"
_COUNT, _PLAN, _LENGTH, _SHORT = 8, 32, 4, 2
_FIXED = len(_MAGIC) + _COUNT + _PLAN + _LENGTH
_LONGEST_DESCRIPTION = 1 << 18
_TAG = 16
_KEY = 32
_LEVEL = 1
_THREADS = 2  # what compresses is what takes time
_LARGEST_WINDOW = 8 << 20
_COPY = 1 << 18


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """What a workspace belongs to, and on whose word it was made."""

    run: str
    stack: str
    phase: str
    """The phase that starts from it."""
    commit: str
    image_digest: str
    policy_receipt: str
    """SHA-256 of the evaluation that let the plan run."""


class _Description(Label, frozen=True, kw_only=True):
    key: str
    """Fingerprint of the pool's key."""
    wrapped_key: bytes
    masks: bytes = b""
    """Values to be masked from here on: a list as JSON, in a box for the pool."""


class SealedFile:
    """A file that is sent in parts, from any offset; nobody changes it meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.upload = secrets.token_hex(16)
        """Tells this file from every other that the same job may send."""
        self.size, self.sha256 = measured(file)

    def read(self, offset: int, size: int) -> bytes:
        """At most *size* bytes from *offset*; fewer only at the end."""
        self._file.seek(offset)
        return self._file.read(size)


def measured(file: BinaryIO) -> tuple[int, str]:
    """Size and SHA-256 of a whole file."""
    file.seek(0)
    digest = hashlib.sha256()
    while part := file.read(_COPY):
        beat()
        digest.update(part)
    return file.tell(), digest.hexdigest()


def seal(
    archive: Iterable[bytes],
    file: BinaryIO,
    *,
    label: Label,
    plan: Callable[[], bytes],
    key: PoolKey,
    masks: tuple[bytes, ...] = (),
) -> SealedFile:
    """
    Write *archive* into the empty *file*, sealed to the pool of *key*.

    *masks* are secret values that whoever opens it has to know.
    *plan* is asked for the SHA-256 of the plan when the archive has been read.
    """
    secret = os.urandom(_KEY)
    description = msgspec.json.encode(
        _Description(
            **msgspec.structs.asdict(label),
            key=key.public.fingerprint,
            wrapped_key=key.public.wrap(secret),
            masks=box.seal(
                msgspec.json.encode(masks), purpose=_for_masks(label), to=key.public
            )
            if masks
            else b"",
        )
    )
    signed = _FIXED + len(description)
    signature_bytes = (key.rsa.key_size + 7) // 8
    file.seek(signed + _SHORT + signature_bytes)
    chunks = _ChunkWriter(file, secret, description)
    packer = zstandard.ZstdCompressor(level=_LEVEL, threads=_THREADS).compressobj()
    for part in archive:
        chunks.write(packer.compress(part))
    chunks.write(packer.flush())
    chunks.close()
    header = (
        _MAGIC
        + chunks.count.to_bytes(_COUNT, "big")
        + plan()
        + len(description).to_bytes(_LENGTH, "big")
        + description
    )
    file.seek(0)
    file.write(header + signature_bytes.to_bytes(_SHORT, "big") + key.sign(header))
    return SealedFile(file)


class OpenedWorkspace:
    """A sealed workspace whose header is this pool's own; its chunks are unread."""

    def __init__(self, file: BinaryIO, key: PoolKey) -> None:
        """
        Raises:
            SealBroken: it is cut short, damaged, or was sealed by another pool.
        """
        file.seek(0)
        fixed = file.read(_FIXED)
        if not fixed.startswith(_MAGIC):
            raise SealBroken("the stored workspace is not a sealed one")
        length = int.from_bytes(fixed[-_LENGTH:], "big")
        if len(fixed) < _FIXED:
            raise _cut_short()
        if length > _LONGEST_DESCRIPTION:
            raise _damaged("the length of the description")
        description = _exactly(file, length)
        signature = _exactly(file, int.from_bytes(_exactly(file, _SHORT), "big"))
        try:
            found = msgspec.json.decode(description, type=_Description)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise _damaged(str(exc)) from exc
        if found.key != key.public.fingerprint:
            raise SealBroken(
                "the stored workspace was sealed by another worker pool, or before"
                " the pool's key was replaced"
            )
        if not key.public.has_signed(signature, fixed + description):
            raise SealBroken("the stored workspace is not what this pool has signed")
        self.label: Label = found
        self._masks, self._key = found.masks, key
        self.plan = fixed[len(_MAGIC) + _COUNT : -_LENGTH]
        """SHA-256 of the plan."""
        self._file = file
        self._start = file.tell()
        self._count = int.from_bytes(fixed[len(_MAGIC) :][:_COUNT], "big")
        self._description = description
        self._secret = key.unwrap(found.wrapped_key)
        self._check_size()

    def masks(self) -> tuple[bytes, ...]:
        """
        Values that the job which left the workspace had masked at its own wish.

        Raises:
            SealBroken: they are not for this workspace.
        """
        if not self._masks:
            return ()
        plain = box.opened(self._masks, purpose=_for_masks(self.label), key=self._key)
        return msgspec.json.decode(plain, type=tuple[bytes, ...])

    def archive(self) -> Iterator[bytes]:
        """
        The archive, from its beginning at each call.

        A piece that comes out is as it was sealed, but only who has read the last one
        knows that none is missing.

        Raises:
            SealBroken: a chunk is damaged, or is not where it was.
        """
        with ThreadPoolExecutor(1, "unseal") as beside:
            pieces = self._pieces()
            following = beside.submit(next, pieces, b"")
            while piece := following.result():
                following = beside.submit(next, pieces, b"")
                yield piece

    def _pieces(self) -> Iterator[bytes]:
        chunks = _ChunkReader(
            self._file, self._start, self._count, self._secret, self._description
        )
        unpacker = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        try:
            with unpacker.stream_reader(
                chunks,  # type: ignore[arg-type] # nothing but read is called
                CHUNK,
                closefd=False,
            ) as plain:
                while part := plain.read(CHUNK):
                    yield part
        except zstandard.ZstdError as exc:
            raise _damaged(str(exc)) from exc
        if chunks.read():
            raise _damaged("there is more than one frame")

    def _check_size(self) -> None:
        size = self._file.seek(0, os.SEEK_END) - self._start
        whole = (self._count - 1) * (CHUNK + _TAG)
        if size < whole + _TAG:
            raise _cut_short()
        if size > whole + CHUNK + _TAG:
            raise _damaged("it is longer than it was")


class _ChunkWriter:
    def __init__(self, file: BinaryIO, secret: bytes, description: bytes) -> None:
        self.count = 0
        self._file = file
        self._cipher = AESGCM(secret)
        self._bound = _bound(description)
        self._waiting = bytearray()

    def write(self, data: bytes) -> None:
        self._waiting += data
        while len(self._waiting) > CHUNK:
            self._put(bytes(self._waiting[:CHUNK]), final=False)
            del self._waiting[:CHUNK]

    def close(self) -> None:
        self._put(bytes(self._waiting), final=True)

    def _put(self, plain: bytes, *, final: bool) -> None:
        nonce = _nonce(self.count, final=final)
        self._file.write(self._cipher.encrypt(nonce, plain, self._bound))
        self.count += 1


class _ChunkReader:
    """Gives one chunk for each call, whatever size it is asked for."""

    def __init__(
        self, file: BinaryIO, start: int, count: int, secret: bytes, description: bytes
    ) -> None:
        self._file = file
        self._place = start
        self._count = count
        self._number = 0
        self._cipher = AESGCM(secret)
        self._bound = _bound(description)

    def read(self, _: int = -1) -> bytes:
        if self._number == self._count:
            return b""
        self._file.seek(self._place)
        sealed = self._file.read(CHUNK + _TAG)
        nonce = _nonce(self._number, final=self._number == self._count - 1)
        try:
            plain = self._cipher.decrypt(nonce, sealed, self._bound)
        except (InvalidTag, ValueError) as exc:
            raise _damaged(f"chunk {self._number} of {self._count}") from exc
        self._place += len(sealed)
        self._number += 1
        return plain


def _for_masks(label: Label) -> str:
    return f"masks of run {label.run}"


def _bound(description: bytes) -> bytes:
    return hashlib.sha256(description).digest()


def _nonce(number: int, *, final: bool) -> bytes:
    return bytes(3) + number.to_bytes(8, "big") + bytes([final])


def _exactly(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise _cut_short()
    return content


def _cut_short() -> SealBroken:
    return SealBroken("the stored workspace is cut short")


def _damaged(details: str) -> SealBroken:
    return SealBroken("the stored workspace is damaged", details=details)
