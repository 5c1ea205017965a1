"""The two moves that every job makes, each as one round trip, on PostgreSQL.

They do what `services.start` and `services.succeed` do statement by statement elsewhere; the same
tests run on both. State codes are those of jobs/states.py: PENDING 0, READY 1, QUEUED 3, RUNNING 4,
SUCCEEDED 10.
"""

from __future__ import annotations

from typing import Any

from django.db import migrations

TELL = """
    UPDATE tenants_tenant SET next_event = next_event + 1 WHERE id = v_tenant
        RETURNING next_event - 1 INTO v_seq;
    INSERT INTO jobs_event (tenant_id, seq, kind, workflow_id, job_id, at, state, reason, error,
        attempt, phase, progress, tiles_done, tiles_total, queued_at, started_at, finished_at, data)
    SELECT j.tenant_id, v_seq, 'job', j.workflow_id, j.id, clock_timestamp(), j.state, j.reason,
        j.error, j.attempt, COALESCE(p.phase, ''),
        CASE WHEN j.state >= 10 THEN 1.0 ELSE COALESCE(p.progress, 0.0) END,
        COALESCE(p.tiles_done, 0), COALESCE(p.tiles_total, 0),
        j.queued_at, j.started_at, j.finished_at, NULL
    FROM jobs_job j LEFT JOIN jobs_jobprogress p ON p.job_id = j.id WHERE j.id = p_job;
"""

# the tenant first, then the job: the order of locks; NULL is "not wanted any more"
LOCK = """
    SELECT t.id INTO v_tenant FROM tenants_tenant t JOIN jobs_job j ON j.tenant_id = t.id
        WHERE j.id = p_job FOR NO KEY UPDATE OF t;
"""

START = f"""
CREATE OR REPLACE FUNCTION labsched_start(
    p_job bigint, p_attempt integer, p_worker text, p_lease_s double precision
) RETURNS TABLE (
    job bigint, uuid uuid, tenant bigint, workflow uuid, branch bigint, job_key varchar,
    job_type varchar, slide bigint, params jsonb, attempt integer, tenant_key varchar,
    branch_name varchar
) LANGUAGE plpgsql AS $body$
#variable_conflict use_column
DECLARE v_tenant bigint; v_seq bigint;
BEGIN
    {LOCK}
    UPDATE jobs_job SET state = 4, reason = '', error = '', started_at = clock_timestamp()
        WHERE id = p_job AND state = 3 AND attempt = p_attempt;
    IF NOT FOUND THEN RETURN; END IF;
    UPDATE jobs_lease SET worker = p_worker,
        expires_at = clock_timestamp() + p_lease_s * interval '1 second'
        WHERE job_id = p_job AND attempt = p_attempt;
    IF NOT FOUND THEN RAISE EXCEPTION 'job % is QUEUED without a lease', p_job; END IF;
    {TELL}
    RETURN QUERY SELECT j.id, j.uuid, j.tenant_id, j.workflow_id, j.branch_id, j.key, j.job_type,
            j.slide_id, j.params, j.attempt, t.key, b.name
        FROM jobs_job j JOIN tenants_tenant t ON t.id = j.tenant_id
            JOIN jobs_branch b ON b.id = j.branch_id
        WHERE j.id = p_job;
END $body$
"""

SUCCEED = f"""
CREATE OR REPLACE FUNCTION labsched_succeed(
    p_job bigint, p_attempt integer, p_summary jsonb, p_reason text, p_result_key text
) RETURNS TABLE (tenant bigint, over_workflow uuid) LANGUAGE plpgsql AS $body$
#variable_conflict use_column
DECLARE v_tenant bigint; v_seq bigint; v_branch bigint; v_branches bigint[];
BEGIN
    {LOCK}
    UPDATE jobs_job SET state = 10, reason = p_reason, summary = p_summary,
        result_key = p_result_key, finished_at = clock_timestamp(), user_slot_id = NULL,
        retry_at = NULL
        WHERE id = p_job AND state = 4 AND attempt = p_attempt AND cancel_requested_at IS NULL
        RETURNING branch_id INTO v_branch;
    IF NOT FOUND THEN RETURN; END IF;
    DELETE FROM jobs_lease WHERE job_id = p_job;
    IF NOT FOUND THEN RAISE EXCEPTION 'job % is RUNNING without a lease', p_job; END IF;
    WITH released AS (
        UPDATE jobs_job SET upstream_left = upstream_left - 1
        WHERE state = 0 AND id IN (SELECT downstream_id FROM jobs_edge WHERE upstream_id = p_job)
        RETURNING branch_id, upstream_left
    ) SELECT array_agg(branch_id) INTO v_branches FROM released WHERE upstream_left = 0;
    UPDATE jobs_job SET state = 1, ready_at = clock_timestamp()
    WHERE state = 0 AND upstream_left = 0 AND id IN (
        SELECT (SELECT f.id FROM jobs_job f WHERE f.branch_id = b.id AND f.state = 0
                ORDER BY f.sequence LIMIT 1)
        FROM jobs_branch b
        WHERE b.id = ANY (array_append(v_branches, v_branch)) AND NOT b.paused AND NOT EXISTS (
            SELECT 1 FROM jobs_job h WHERE h.branch_id = b.id AND h.state >= 1 AND h.state <= 4));
    {TELL}
    NOTIFY labsched_wake;
    RETURN QUERY SELECT v_tenant, (
        SELECT j.workflow_id FROM jobs_job j WHERE j.id = p_job AND NOT EXISTS (
            SELECT 1 FROM jobs_job l WHERE l.workflow_id = j.workflow_id AND l.state < 10));
END $body$
"""

FORGET = """
DROP FUNCTION IF EXISTS labsched_start(bigint, integer, text, double precision);
DROP FUNCTION IF EXISTS labsched_succeed(bigint, integer, jsonb, text, text);
"""


def make(apps: Any, schema_editor: Any) -> None:
    """Nothing to do on SQLite, which has no round trips to save."""
    if schema_editor.connection.vendor == "postgresql":
        for statement in (START, SUCCEED):
            schema_editor.execute(statement, params=None)


def drop(apps: Any, schema_editor: Any) -> None:
    """The way back."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(FORGET, params=None)


class Migration(migrations.Migration):
    dependencies = [("jobs", "0003_history")]
    operations = [migrations.RunPython(make, drop)]
