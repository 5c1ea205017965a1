"""Results in S3-compatible storage, read by ranges: no file is ever fetched whole to read a part."""

from __future__ import annotations

import io
from typing import Any

from botocore.exceptions import ClientError
from django.core.files.base import File
from storages.backends.s3 import S3Storage
from storages.utils import clean_name

AHEAD = 1 << 20
"""Bytes of one request where less is asked for."""


class RangedS3Storage(S3Storage):
    """django-storages' own, but for reading: that fetches whole objects into memory."""

    def _open(self, name: str, mode: str = "rb") -> Any:
        if mode != "rb":
            return super()._open(name, mode)
        stored = self.bucket.Object(self._normalize_name(clean_name(name)))
        try:
            stored.load()
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                raise FileNotFoundError(f"There is no {name} in the bucket.") from error
            raise
        return File(io.BufferedReader(_Ranges(stored), AHEAD), name)


class _Ranges(io.RawIOBase):
    """An object of a bucket as a file: every read is one request for its bytes."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self._size = int(stored.content_length)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._at + len(buffer))
        if end <= self._at:
            return 0
        # the version that was opened: a name may have been given to other bytes since
        answer = self._stored.get(Range=f"bytes={self._at}-{end - 1}", IfMatch=self._stored.e_tag)
        with answer["Body"] as body:
            data = body.read()
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
