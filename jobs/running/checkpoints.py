"""The finished blocks of one attempt: where the body of a job keeps them and finds earlier ones.

Files first, rows after: a row is written only while the attempt is the job's running one, so a late
word from an old attempt changes nothing. Several workers may do the same block; the first row stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import connection, transaction
from django.db.models import Q

from jobs import blocks
from jobs.imaging.blocks import BlockFacts, Key
from jobs.models import Block, Job
from jobs.models.checkpoints import PLAN
from jobs.running.artifacts import attempt_folder
from jobs.running.persist import persist
from jobs.running.progress import Stopped, StopReason
from jobs.states import JobState

Told = Callable[[Key, BlockFacts], None]
NO_FACTS = BlockFacts(0, 0, None, "")
log = logging.getLogger(__name__)


class NoPlan(Exception):
    """The job follows another plan than this helper would: another device or model decides it."""


class JobBlocks:
    """A `BlockStore` for one attempt of a job.

    helps   of a helper, which follows the job's plan and never makes one
    copies  a folder of this machine for what was written or read, where the storage is elsewhere
    beat    a sign of life for each file
    told    hears of every block that became the job's
    """

    def __init__(
        self,
        job: Job,
        *,
        helps: bool = False,
        copies: Path | None = None,
        beat: Callable[[], None] = lambda: None,
        told: Told = lambda key, facts: None,
    ) -> None:
        self.job = job
        self.attempt = job.attempt
        self.folder = f"{attempt_folder(job, job.attempt)}/{blocks.FOLDER}"
        self._helps, self._copies, self._beat, self._told = helps, copies, beat, told
        self._known: dict[tuple[str, Key], Block] = {}
        self._seen: dict[str, dict[Key, Block]] = defaultdict(dict)  # what `finished` read so far
        self._home = threading.get_ident()

    def plan(self, name: str, make: Callable[[], bytes]) -> bytes:
        """The plan of `name`; where the job has none, that of `make`. Raises Stopped when fenced, and
        NoPlan where a helper would have to make it: nobody would use its blocks."""
        with self._connected():
            found = self._find(name, PLAN)
        if found is None and self._helps:
            self._check_running()
            raise NoPlan(f"there is no plan {name[:12]}")
        if found is None:
            self._keep(name, PLAN, make(), NO_FACTS)
        return self.get(name, PLAN)

    def finished(self, name: str) -> Mapping[Key, BlockFacts]:
        """The blocks of all attempts that are whole, and those with gaps of this one.

        One query for what is new: rows are inserted under the job's lock, so their numbers rise as
        they are committed.
        """
        seen = self._seen[name]
        latest = max((block.pk for block in seen.values()), default=0)
        with self._connected():
            whole = self._rows(name).filter(Q(gaps=0) | Q(attempt=self.attempt), row__gte=0)
            seen.update(((row.row, row.col), row) for row in whole.filter(pk__gt=latest))
        return {key: _facts(block) for key, block in seen.items()}

    def put(self, name: str, key: Key, content: bytes, facts: BlockFacts) -> None:
        """Keep a block; the first one stays, unless it had gaps. Raises Stopped when fenced."""
        kept = self._keep(name, key, content, facts)
        # one line for each computed block: what was finished is never computed again
        log.info(
            "%s attempt %d: block %d, %d computed (%d cells, %d gaps)%s",
            *(self.job, self.attempt, *key, facts.cells, facts.gaps),
            "" if kept else ", and another was first",
        )
        if kept:
            self._told(key, facts)

    def get(self, name: str, key: Key) -> bytes:
        """The content of a finished block. Raises Stopped when fenced, BlockLost when the storage
        lost it: then it is no longer finished, and the next attempt makes it again."""
        self._beat()
        block = self._known.get((name, key)) or self._seen[name].get(key)
        if block is None:
            with self._connected():
                block = self._find(name, key)
        if block is None:
            self._check_running()  # the blocks of a job go when it ends
            raise blocks.BlockLost(f"block {key} is not kept any more, and is made again")
        self._known[name, key] = block
        return self._read(block)

    def _check_running(self) -> None:
        """Raise Stopped when fenced."""
        with self._connected(), transaction.atomic():
            self._hold()

    # --- rows ----------------------------------------------------------------------------

    def _rows(self, name: str) -> Any:
        return Block.objects.for_tenant(self.job.tenant).filter(job=self.job.pk, name=name)

    def _find(self, name: str, key: Key) -> Block | None:
        found: Block | None = self._rows(name).filter(row=key[0], col=key[1]).first()
        return found

    def _keep(self, name: str, key: Key, content: bytes, facts: BlockFacts) -> bool:
        """Store the file, then its row. False when another one is the job's: the file goes again."""
        self._beat()
        # never the same path twice, so that a file that is to be removed is nobody's new one
        wanted = f"{self.folder}/{name}/{key[0]}_{key[1]}-{uuid.uuid4().hex[:12]}.block"
        path = default_storage.save(wanted, ContentFile(content))
        block = self._block(name, key, path, content, facts)
        try:
            with self._connected():
                kept = persist(lambda: self._insert(block), for_s=settings.LEASE_S, beat=self._beat)
        except BaseException:
            default_storage.delete(path)
            raise
        self._known[name, key] = kept
        if kept.path != path:
            default_storage.delete(path)
            return False
        self._copy(block, content)
        return True

    def _block(self, name: str, key: Key, path: str, content: bytes, facts: BlockFacts) -> Block:
        left, top, right, bottom = facts.box_l0 or (None, None, None, None)
        return Block(
            tenant_id=self.job.tenant_id,
            job_id=self.job.pk,
            name=name,
            row=key[0],
            col=key[1],
            attempt=self.attempt,
            path=path,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            cells=facts.cells,
            gaps=facts.gaps,
            left_l0=left,
            top_l0=top,
            right_l0=right,
            bottom_l0=bottom,
            fingerprint=facts.fingerprint,
        )

    def _insert(self, block: Block) -> Block:
        """Write the row unless a whole one is there. The one that is the job's now.

        It may be asked again when the answer was lost with a connection: then its own is there.
        """
        with transaction.atomic():
            self._hold()
            there = self._find(block.name, (block.row, block.col))
            if there is not None and (there.path == block.path or not there.gaps):
                return there
            if there is not None:
                self._rows(block.name).filter(pk=there.pk).update(job=None)
            block.pk = None
            block.save(force_insert=True)
        return block

    def _hold(self) -> None:
        """Hold the job's row, so that it does not move meanwhile. Raises Stopped when fenced."""
        mine = Job.objects.for_tenant(self.job.tenant).filter(
            pk=self.job.pk, attempt=self.attempt, state=JobState.RUNNING.value
        )
        if not mine.select_for_update(no_key=True).values_list("pk").first():
            raise Stopped(StopReason.FENCED)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Leave no database connection to a thread that ends."""
        try:
            yield
        finally:
            if threading.get_ident() != self._home:
                connection.close()

    # --- files ---------------------------------------------------------------------------

    def _read(self, block: Block) -> bytes:
        copy = self._place(block)
        if copy is not None and copy.exists():
            return copy.read_bytes()
        try:
            content = blocks.content_of(block.path, block.sha256)
        except blocks.BlockLost:
            self._forget(block)
            raise
        self._copy(block, content)
        return content

    def _forget(self, block: Block) -> None:
        """Have it made again, while the attempt is the running one. Raises Stopped when fenced."""
        key = (block.row, block.col)
        self._known.pop((block.name, key), None)
        self._seen[block.name].pop(key, None)
        with self._connected(), transaction.atomic():
            self._hold()
            self._rows(block.name).filter(pk=block.pk).update(job=None)

    def _copy(self, block: Block, content: bytes) -> None:
        copy = self._place(block)
        if copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            part = copy.with_suffix(f".{threading.get_ident()}")
            part.write_bytes(content)
            part.replace(copy)

    def _place(self, block: Block) -> Path | None:
        return None if self._copies is None else self._copies / Path(block.path).name


def _facts(block: Block) -> BlockFacts:
    corners = (block.left_l0, block.top_l0, block.right_l0, block.bottom_l0)
    box = None if None in corners else cast(tuple[float, float, float, float], corners)
    return BlockFacts(block.cells, block.gaps, box, block.fingerprint)
