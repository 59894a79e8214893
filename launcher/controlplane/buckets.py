"""
Workspaces in a bucket, of Amazon S3 or of what speaks its API.

A workspace is one object under a key that no other attempt has.  Its parts go there
by URLs that are good for one part each, for the bytes with one checksum, and for
some minutes; or through the control plane, for launchers that ask for no URLs.
"""

from __future__ import annotations

import base64
import hashlib

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from launcher.controlplane.errors import StorageAway, WorkerRefused
from launcher.controlplane.workspaces import (
    MAX_WORKSPACE,
    Gone,
    Incomplete,
    Upload,
    too_large,
)
from launcher.wire.messages import ErrorCode, WorkspaceUploaded


log = structlog.get_logger()

URL_SECONDS = 900
"""How long a presigned URL is good."""
SMALLEST_PART = 5 << 20
"""Bytes that S3 wants of every part but the last."""
_MISSING = frozenset({"NoSuchUpload", "NoSuchKey", "404", "NotFound"})
_PART = ("PartNumber", "ETag", "ChecksumSHA256")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Where the bucket is; who may use it, the machine's own AWS identity says."""

    name: str
    prefix: str = ""
    region: str
    endpoint: str = ""
    """Empty: Amazon's own."""
    presigned: bool = True
    """Whether launchers get URLs, and need not send everything through us."""
    path_style: bool = False
    """Whether the bucket is named in the path and not in the host."""


class BucketStorage:
    """Implements `launcher.controlplane.workspaces.Storage`."""

    def __init__(self, bucket: Bucket, limit: int = MAX_WORKSPACE) -> None:
        self._bucket = bucket
        self._limit = limit
        self._client = _client(bucket)
        self.presigned = bucket.presigned

    def begin(self, file: str) -> str:
        with self._translated():
            begun = self._client.create_multipart_upload(
                **self._at(file),
                ChecksumAlgorithm="SHA256",
                ContentType="application/octet-stream",
            )
        return str(begun["UploadId"])

    def received(self, upload: Upload) -> int:
        return _total(self._parts(upload))

    def append(self, upload: Upload, offset: int, data: bytes) -> int:
        parts = self._parts(upload)
        size = _total(parts)
        fresh = data[size - offset :]
        if offset > size or not fresh:
            return size
        self._check(parts, size + len(fresh))
        with self._translated():
            self._client.upload_part(
                **self._part(upload, len(parts) + 1, hashlib.sha256(fresh).digest()),
                Body=fresh,
            )
        return size + len(fresh)

    def place(self, upload: Upload, offset: int, size: int, sha256: str) -> str | None:
        parts = self._parts(upload)
        there = _total(parts)
        if there != offset:
            return None
        self._check(parts, there + size)
        part = self._part(upload, len(parts) + 1, bytes.fromhex(sha256))
        with self._translated():
            return self._url("upload_part", part)

    def finish(self, upload: Upload, sent: WorkspaceUploaded) -> None:
        try:
            parts = self._parts(upload)
        except Gone:
            if self._size(upload.file) == sent.size:
                return  # by an earlier call, whose answer got lost
            raise
        size = _total(parts)
        if size < sent.size:
            raise Incomplete(size)
        if size > sent.size:
            raise WorkerRefused(
                ErrorCode.WRONG_CHECKSUM, "the workspace was damaged on its way"
            )
        listed = [
            # Not everything that speaks S3 lists the checksums.
            {name: part[name] for name in _PART if name in part}
            for part in parts
        ]
        with self._translated():
            self._client.complete_multipart_upload(
                **self._at(upload.file),
                UploadId=upload.external,
                MultipartUpload={"Parts": listed},
            )

    def abandon(self, upload: Upload) -> None:
        try:
            with self._translated():
                self._client.abort_multipart_upload(
                    **self._at(upload.file), UploadId=upload.external
                )
        except Gone:
            pass

    def contains(self, file: str) -> bool:
        return self._size(file) is not None

    def read(self, file: str, first: int, last: int) -> Iterator[bytes]:
        with self._translated():
            found = self._client.get_object(
                **self._at(file), Range=f"bytes={first}-{last}"
            )
        body = found["Body"]
        try:
            with self._translated():
                yield from body.iter_chunks(_PIECE)
        finally:
            body.close()

    def source(self, file: str) -> str | None:
        if not self.presigned:
            return None
        with self._translated():
            return self._url("get_object", self._at(file))

    def remove(self, file: str) -> None:
        with self._translated():
            self._client.delete_object(**self._at(file))

    def names(self) -> set[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket.name, Prefix=self._bucket.prefix
        )
        with self._translated():
            return {
                each["Key"].removeprefix(self._bucket.prefix)
                for page in pages
                for each in page.get("Contents", ())
            }

    def _at(self, file: str) -> dict[str, str]:
        return {"Bucket": self._bucket.name, "Key": self._bucket.prefix + file}

    def _part(self, upload: Upload, number: int, sha256: bytes) -> dict[str, Any]:
        return {
            **self._at(upload.file),
            "UploadId": upload.external,
            "PartNumber": number,
            "ChecksumSHA256": base64.b64encode(sha256).decode(),
        }

    def _url(self, call: str, given: dict[str, Any]) -> str:
        return str(
            self._client.generate_presigned_url(
                call, Params=given, ExpiresIn=URL_SECONDS
            )
        )

    def _parts(self, upload: Upload) -> list[dict[str, Any]]:
        pages = self._client.get_paginator("list_parts").paginate(
            **self._at(upload.file), UploadId=upload.external
        )
        with self._translated():
            return [part for page in pages for part in page.get("Parts", ())]

    def _size(self, file: str) -> int | None:
        try:
            with self._translated():
                return int(self._client.head_object(**self._at(file))["ContentLength"])
        except Gone:
            return None

    def _check(self, parts: list[dict[str, Any]], size: int) -> None:
        if size > self._limit:
            raise too_large(self._limit)
        if any(part["Size"] < SMALLEST_PART for part in parts):
            raise WorkerRefused(
                ErrorCode.MALFORMED,
                f"every part but the last must have {SMALLEST_PART} bytes",
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from botocore.exceptions import (  # noqa: PLC0415 (decision 56)
            BotoCoreError,
            ClientError,
        )

        try:
            yield
        except ClientError as exc:
            code = str(exc.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise Gone from exc
            log.warning("bucket.refused", bucket=self._bucket.name, code=code)
            raise StorageAway from exc
        except BotoCoreError as exc:
            # Its text may have the address of a request, signature and all.
            log.warning(
                "bucket.away", bucket=self._bucket.name, error=type(exc).__name__
            )
            raise StorageAway from exc


def _total(parts: list[dict[str, Any]]) -> int:
    return sum(int(part["Size"]) for part in parts)


def _client(bucket: Bucket) -> Any:  # noqa: ANN401 (boto3 makes its classes up)
    import boto3  # noqa: PLC0415 (decision 56)

    from botocore.config import Config  # noqa: PLC0415

    return boto3.client(
        "s3",
        region_name=bucket.region,
        # Or a signed URL may be for a host that only redirects.
        endpoint_url=bucket.endpoint or f"https://s3.{bucket.region}.amazonaws.com",
        config=Config(
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=30,
            retries={"mode": "standard", "max_attempts": 3},
            max_pool_connections=40,
            s3={"addressing_style": "path" if bucket.path_style else "virtual"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
