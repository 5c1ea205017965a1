"""What stands before one waiting job, exact to EXACT_TO whatever else waits.

Every count stops there, and every query reads through an index of live rows alone (R12, R13).
"""

from __future__ import annotations

from collections import defaultdict

from django.db.models import Q

from jobs import sql
from jobs.models import Branch, Edge, Job
from jobs.models.jobs import HEAD
from jobs.scheduling.gates import EXACT_TO, Brief, Waiting, members_before
from jobs.scheduling.line import Line
from jobs.shapes import moment
from jobs.states import FIRST_HEAD, FIRST_TERMINAL, JobState

SHOWN = 20  # blocking jobs that are named
MEMBERS_LOOKED = 50

# everything above a job that is not over; an upstream job that succeeded has nothing open above it
ABOVE = f"""
    WITH RECURSIVE above(id) AS (
        SELECT e.upstream_id FROM jobs_edge e JOIN jobs_job u ON u.id = e.upstream_id
        WHERE e.downstream_id = %s AND u.state < {FIRST_TERMINAL:d}
        UNION
        SELECT e.upstream_id FROM above a JOIN jobs_edge e ON e.downstream_id = a.id
        JOIN jobs_job u ON u.id = e.upstream_id WHERE u.state < {FIRST_TERMINAL:d}
    )
    SELECT count(*) FROM (SELECT id FROM above LIMIT {EXACT_TO + 1}) AS found
"""
READY = f"tenant_id = %s AND queue = %s AND state = {JobState.READY:d} AND priority * -1"
HIGHER = f"""
    SELECT count(*) FROM (SELECT 1 FROM jobs_job WHERE {READY} < %s LIMIT {EXACT_TO + 1}) AS found
"""
MINE = f"""
    SELECT count(*) FROM (SELECT 1 FROM jobs_job WHERE {READY} = %s AND member = %s
        AND sequence < %s LIMIT {EXACT_TO + 1}) AS found
"""
# from one member to the next through the index: it costs as much as there are members
MEMBERS = f"""
    WITH RECURSIVE members(member) AS (
        SELECT min(member) FROM jobs_job WHERE {READY} = %s
        UNION ALL
        SELECT (SELECT min(j.member) FROM jobs_job j WHERE j.tenant_id = %s AND j.queue = %s
            AND j.state = {JobState.READY:d} AND j.priority * -1 = %s AND j.member > m.member)
        FROM members m WHERE m.member IS NOT NULL
    )
    SELECT member FROM members WHERE member IS NOT NULL LIMIT {MEMBERS_LOOKED}
"""
OF_MEMBER = f"""
    SELECT * FROM (SELECT member, sequence FROM jobs_job WHERE {READY} = %s AND member = %s
        ORDER BY sequence LIMIT %s) AS m{{n}}
"""


def waiting(job: Job, line: Line) -> Waiting:
    """What stands before one job, exact to EXACT_TO whatever else waits."""
    lane = Branch.objects.for_tenant(line.tenant).get(pk=job.branch_id)
    edges = Edge.objects.for_tenant(line.tenant).filter(downstream=job)
    unfinished = ~Q(upstream__state=JobState.SUCCEEDED.value)
    upstream = list(
        edges.filter(unfinished)
        .order_by("upstream__sequence")
        .values_list("upstream__uuid", "upstream__key", "upstream__state")[: SHOWN + 1]
    )
    left = len(upstream) if len(upstream) <= SHOWN else edges.filter(unfinished).count()
    lane_first, lane_ahead = _lane(job, line)
    return Waiting(
        state=job.status,
        queue=job.queue,
        branch=lane.name,
        branch_paused=lane.paused,
        reason=job.reason,
        error=job.error,
        failures=job.failures,
        max_attempts=job.max_attempts,
        retry_at=moment(job.retry_at),
        upstream=[_brief(*each) for each in upstream[:SHOWN]],
        upstream_left=left,
        upstream_total=edges.count(),
        upstream_all=sql.rows(ABOVE, [job.pk])[0][0] if left else 0,
        lane_first=lane_first,
        lane_ahead=lane_ahead,
        line_ahead=line_ahead(job, line) if job.status >= FIRST_HEAD else 0,
        mine_running=mine_running(job.queue, line),
    )


def mine_running(queue: str, line: Line) -> list[Brief]:
    """The jobs of the asking tenant that have a worker of this queue."""
    mine = (row for row in line.running if row.tenant == line.tenant.pk and row.queue == queue)
    return [row.brief() for row in mine][:SHOWN]


def _brief(uuid: object, key: str, state: int) -> Brief:
    return Brief(str(uuid), key, JobState(state).public)


def _lane(job: Job, line: Line) -> tuple[Brief | None, int]:
    """The job that its lane runs first, and how many of the lane are before it."""
    if job.status >= FIRST_HEAD:
        return None, 0
    lane = Job.objects.for_tenant(line.tenant).filter(branch=job.branch_id)
    names = ("uuid", "key", "state")
    head = lane.filter(HEAD).values_list(*names).first()
    pending = lane.filter(state=JobState.PENDING.value, sequence__lt=job.sequence)
    before = pending.order_by("sequence")[:EXACT_TO].count()
    first = head or (pending.order_by("sequence").values_list(*names).first() if before else None)
    return (_brief(*first) if first else None), before + (head is not None)


def line_ahead(job: Job, line: Line) -> int:
    """How many ready jobs of its tenant and queue take a worker before it (R5)."""
    at = [job.tenant_id, job.queue, -job.priority]
    higher = int(sql.rows(HIGHER, at)[0][0])
    mine = int(sql.rows(MINE, [*at, job.member, job.sequence])[0][0])
    members = [member for (member,) in sql.rows(MEMBERS, [*at, *at]) if member != job.member]
    if not members or higher + mine > EXACT_TO:
        return higher + mine
    leases = leases_of_members(line)
    parts = [OF_MEMBER.format(n=number) for number in range(len(members))]
    most = [max(0, leases.get(job.member, 0) + mine - leases.get(each, 0)) + 1 for each in members]
    values = [
        value for member, limit in zip(members, most, strict=True) for value in (*at, member, limit)
    ]
    others: dict[int, list[int]] = defaultdict(list)
    for member, sequence in sql.rows(" UNION ALL ".join(parts), values):
        others[member].append(sequence)
    for sequences in others.values():
        sequences.sort()
    return higher + mine + members_before(job.member, mine, job.sequence, others, leases)


def leases_of_members(line: Line) -> dict[int, int]:
    found: dict[int, int] = defaultdict(int)
    for row in line.leases:
        if row.tenant == line.tenant.pk:
            found[row.member] += 1
    return found
