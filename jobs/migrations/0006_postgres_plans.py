"""The moves of 0004 again, planned once a connection: planning them cost more than running them. And
a third one: a promotion, which `promotion` does statement by statement elsewhere.

A plan is kept whatever its parameters (`plan_cache_mode`), and made for large tables even while
they are small (`enable_seqscan`): one that was made on the first day must serve on the day of the
first hundred thousand jobs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.db import migrations

before = import_module("jobs.migrations.0004_postgres_functions")

PLANNED_ONCE = "SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off"

START = before.START.replace("LANGUAGE plpgsql AS", f"LANGUAGE plpgsql {PLANNED_ONCE} AS")

SUCCEED = f"""
CREATE OR REPLACE FUNCTION labsched_succeed(
    p_job bigint, p_attempt integer, p_summary jsonb, p_reason text, p_result_key text
) RETURNS TABLE (tenant bigint, over_workflow uuid) LANGUAGE plpgsql {PLANNED_ONCE} AS $body$
#variable_conflict use_column
DECLARE v_tenant bigint; v_seq bigint; v_branch bigint; v_below bigint[]; v_branches bigint[];
    v_heads bigint[];
BEGIN
    {before.LOCK}
    UPDATE jobs_job SET state = 10, reason = p_reason, summary = p_summary,
        result_key = p_result_key, finished_at = clock_timestamp(), user_slot_id = NULL,
        retry_at = NULL
        WHERE id = p_job AND state = 4 AND attempt = p_attempt AND cancel_requested_at IS NULL
        RETURNING branch_id INTO v_branch;
    IF NOT FOUND THEN RETURN; END IF;
    DELETE FROM jobs_lease WHERE job_id = p_job;
    IF NOT FOUND THEN RAISE EXCEPTION 'job % is RUNNING without a lease', p_job; END IF;
    SELECT array_agg(downstream_id) INTO v_below FROM jobs_edge WHERE upstream_id = p_job;
    IF v_below IS NOT NULL THEN
        WITH released AS (
            UPDATE jobs_job SET upstream_left = upstream_left - 1
            WHERE id = ANY (v_below) AND state = 0 RETURNING branch_id, upstream_left
        ) SELECT array_agg(branch_id) INTO v_branches FROM released WHERE upstream_left = 0;
    END IF;
    SELECT array_agg(head.id) INTO v_heads FROM (
        SELECT (SELECT f.id FROM jobs_job f WHERE f.branch_id = b.id AND f.state = 0
            ORDER BY f.sequence LIMIT 1) AS id
        FROM jobs_branch b
        WHERE b.id = ANY (array_append(v_branches, v_branch)) AND NOT b.paused AND NOT EXISTS (
            SELECT 1 FROM jobs_job h WHERE h.branch_id = b.id AND h.state >= 1 AND h.state <= 4)
    ) head WHERE head.id IS NOT NULL;
    IF v_heads IS NOT NULL THEN
        UPDATE jobs_job SET state = 1, ready_at = clock_timestamp()
        WHERE id = ANY (v_heads) AND state = 0 AND upstream_left = 0;
    END IF;
    {before.TELL}
    NOTIFY labsched_wake;
    RETURN QUERY SELECT v_tenant, (
        SELECT j.workflow_id FROM jobs_job j WHERE j.id = p_job AND NOT EXISTS (
            SELECT 1 FROM jobs_job l WHERE l.workflow_id = j.workflow_id AND l.state < 10));
END $body$
"""

PROMOTE = f"""
CREATE OR REPLACE FUNCTION labsched_promote(
    p_jobs bigint[], p_run_slots integer[], p_withdraw_s double precision
) RETURNS TABLE (job bigint, attempt integer, workflow uuid)
LANGUAGE plpgsql {PLANNED_ONCE} AS $body$
#variable_conflict use_column
DECLARE v_moved bigint[]; v_tenant bigint; v_number bigint; v_before bigint;
BEGIN
    -- the tenants first, then the jobs: the order of locks
    PERFORM t.id FROM tenants_tenant t
        WHERE t.id = ANY (ARRAY(SELECT j.tenant_id FROM jobs_job j WHERE j.id = ANY (p_jobs)))
        ORDER BY t.id FOR NO KEY UPDATE;
    WITH moved AS (
        UPDATE jobs_job SET state = 3, reason = '', attempt = attempt + 1,
            user_slot_id = tenant_id, queued_at = clock_timestamp(), started_at = NULL
        WHERE id = ANY (p_jobs) AND state = 1 AND NOT EXISTS (
            SELECT 1 FROM tenants_tenant t WHERE t.id = tenant_id AND t.paused)
        RETURNING id
    ) SELECT array_agg(id) INTO v_moved FROM moved;
    -- a lease for each: nobody's yet
    INSERT INTO jobs_lease (tenant_id, run_slot_id, job_id, queue, member, attempt, shard, worker,
        user_slot_id, expires_at, pushed_at)
    SELECT j.tenant_id, p.run_slot, j.id, j.queue, j.member, j.attempt, 0, '', j.tenant_id,
        clock_timestamp() + p_withdraw_s * interval '1 second', clock_timestamp()
    FROM unnest(p_jobs, p_run_slots) p (id, run_slot) JOIN jobs_job j ON j.id = p.id
    WHERE j.id = ANY (v_moved);
    -- in the order of each one's last job, which is the order in which they were served (R5)
    FOR v_tenant, v_number IN
        SELECT j.tenant_id, count(*)
        FROM unnest(p_jobs) WITH ORDINALITY p (id, place) JOIN jobs_job j ON j.id = p.id
        WHERE j.id = ANY (v_moved) GROUP BY j.tenant_id ORDER BY max(p.place)
    LOOP
        UPDATE tenants_tenant SET next_event = next_event + v_number,
            served_at = clock_timestamp()
            WHERE id = v_tenant RETURNING next_event - v_number - 1 INTO v_before;
        INSERT INTO jobs_event (tenant_id, seq, kind, workflow_id, job_id, at, state, reason,
            error, attempt, phase, progress, tiles_done, tiles_total, queued_at, started_at,
            finished_at, data)
        SELECT j.tenant_id, v_before + row_number() OVER (ORDER BY j.sequence), 'job',
            j.workflow_id, j.id, clock_timestamp(), j.state, j.reason, j.error, j.attempt,
            COALESCE(p.phase, ''), COALESCE(p.progress, 0.0), COALESCE(p.tiles_done, 0),
            COALESCE(p.tiles_total, 0), j.queued_at, j.started_at, j.finished_at, NULL
        FROM jobs_job j LEFT JOIN jobs_jobprogress p ON p.job_id = j.id
        WHERE j.id = ANY (v_moved) AND j.tenant_id = v_tenant;
    END LOOP;
    RETURN QUERY SELECT j.id, j.attempt, j.workflow_id FROM jobs_job j
        WHERE j.id = ANY (v_moved);
END $body$
"""

FORGET = """
    DROP FUNCTION IF EXISTS labsched_promote(bigint[], integer[], double precision);
"""


def make(apps: Any, schema_editor: Any) -> None:
    """Nothing to do on SQLite."""
    _execute(schema_editor, START, SUCCEED, PROMOTE)


def back(apps: Any, schema_editor: Any) -> None:
    """The functions as they were."""
    _execute(schema_editor, before.START, before.SUCCEED, FORGET)


def _execute(schema_editor: Any, *statements: str) -> None:
    if schema_editor.connection.vendor == "postgresql":
        for statement in statements:
            schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    dependencies = [("jobs", "0005_blobs")]
    operations = [migrations.RunPython(make, back)]
