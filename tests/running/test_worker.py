"""One real worker with its child: what it does when jobs fail, hang, are cancelled, and when it ends."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import rq
from rq.serializers import JSONSerializer

from tests.client import Client, Row, by_key, probe, until
from tests.conftest import Cast
from tests.probelog import Span
from tests.processes import Process
from tests.running.conftest import CANCEL_GRACE_S, STALL_S, child_of
from tests.stack import Stack

SLACK_S = 4.0  # a loaded machine


def begun(stack: Stack, client: Client, **params: object) -> Row:
    """A probe that runs now; its job."""
    made = client.submit([probe("it", "x", **{"seconds": 60, **params})])
    stack.wait_started(client, "it")
    return client.wait_job(made["jobs"][0]["id"], ["RUNNING"])


def attempts(stack: Stack, client: Client) -> list[Span]:
    return [span for span in stack.spans(client) if span.key == "it"]


def wait_reason(client: Client, job: Row, *, timeout_s: float) -> Row:
    """The job once its present attempt was stopped: it waits for its next one, or is over."""

    def stopped() -> Row | None:
        seen = client.job(job["id"])
        return seen if seen["state"] != "RUNNING" or seen["attempt"] > job["attempt"] else None

    seen = until(stopped, timeout_s=timeout_s, what="the attempt stopped", every_s=0.05)
    assert seen is not None
    return seen


def test_one_child_runs_job_after_job(stack: Stack, cast: Cast, worker: Process) -> None:
    (ann,) = cast("ann")
    before = child_of(worker).pid
    made = ann.submit([probe(f"n{n}", "x") for n in range(5)])
    assert ann.wait(made["id"])["state"] == "SUCCEEDED"
    assert child_of(worker).pid == before


def test_neither_a_cpu_worker_nor_its_child_loads_torch_or_the_web(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    ann.wait(ann.submit([probe("n", "x")])["id"])
    for pid in (worker.pid, child_of(worker).pid):
        loaded = Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" not in loaded
        assert psutil.Process(pid).memory_info().rss < 150e6


def test_a_killed_child_is_noticed_within_a_second_and_the_job_is_tried_again(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=1)
    killed = time.monotonic()
    child_of(worker).kill()
    seen = wait_reason(ann, job, timeout_s=5)
    assert time.monotonic() - killed < 1 + SLACK_S / 2
    assert "signal 9 (SIGKILL)" in seen["error"] or seen["attempt"] == 2
    over = ann.wait_job(job["id"], ["SUCCEEDED"], timeout_s=30)
    assert over["attempt"] == 2
    assert [span.ok for span in attempts(stack, ann)] == [None, True]


def test_a_body_that_exits_says_so_in_a_sentence(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    over = ann.wait(ann.submit([probe("it", "x", fail="exit")])["id"], timeout_s=90)
    (job,) = over["jobs"]
    assert (job["state"], job["reason"], job["attempt"]) == ("FAILED", "error", 3)
    assert "exit code 3" in job["error"]


def test_a_body_that_runs_out_of_memory_ends_as_that_in_a_fresh_child_each_time(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    before = child_of(worker).pid
    over = ann.wait(ann.submit([probe("it", "x", fail="oom")])["id"], timeout_s=90)
    (job,) = over["jobs"]
    assert (job["state"], job["reason"]) == ("FAILED", "out_of_memory")
    assert "memory" in job["error"]
    stack.wait_until_healthy()
    assert child_of(worker).pid != before


def test_an_error_tells_people_a_sentence_and_no_traceback(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    over = ann.wait(ann.submit([probe("it", "x", fail="error")])["id"], timeout_s=60)
    (job,) = over["jobs"]
    assert (job["state"], job["reason"]) == ("FAILED", "error")
    assert "as it was told to" in job["error"]
    assert "\n" not in job["error"]
    assert "Traceback" not in job["error"]


def test_a_body_that_hangs_is_stopped_as_stalled(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    made = ann.submit([probe("it", "x", fail="hang", fail_attempts=1)])
    first = stack.wait_started(ann, "it")
    over = ann.wait_job(made["jobs"][0]["id"], ["SUCCEEDED"], timeout_s=60)
    second = attempts(stack, ann)[1]
    assert over["attempt"] == 2
    assert STALL_S <= second.start - first.start < STALL_S + 2 * SLACK_S


def test_a_job_may_ask_for_a_longer_silence(stack: Stack, cast: Cast, worker: Process) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=0, fail="hang", stall_s=60)
    time.sleep(STALL_S + 2)
    assert ann.job(job["id"])["state"] == "RUNNING"
    ann.cancel(job["id"])
    ann.wait_job(job["id"], ["CANCELLED"], timeout_s=CANCEL_GRACE_S * 2 + SLACK_S)


def test_a_job_is_stopped_at_its_time_limit(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    over = ann.wait(ann.submit([probe("it", "x", seconds=60, timeout_s=0.5)])["id"], timeout_s=90)
    (job,) = over["jobs"]
    assert (job["state"], job["reason"]) == ("FAILED", "timeout")
    assert "0.5 s" in job["error"]


def test_a_running_job_ends_soon_after_its_cancel(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann)
    asked = time.monotonic()
    assert ann.cancel(job["id"]).status_code == 200
    over = ann.wait_job(job["id"], ["CANCELLED"], timeout_s=2 + SLACK_S)
    assert time.monotonic() - asked < 2 + SLACK_S
    assert over["reason"] == "cancelled_by_user"
    (span,) = attempts(stack, ann)
    assert span.ok is False


def test_a_body_that_does_not_listen_is_killed_after_the_grace(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=0, fail="hang", stall_s=60)
    before = child_of(worker).pid
    ann.cancel(job["id"])
    over = ann.wait_job(job["id"], ["CANCELLED"], timeout_s=CANCEL_GRACE_S * 2 + SLACK_S)
    assert over["reason"] == "cancelled_by_user"
    stack.wait_until_healthy()
    assert child_of(worker).pid != before


def test_an_idle_worker_ends_at_once_and_leaves_no_row(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    assert ann.dashboard()["workers"]["total"] == 1
    assert worker.stop() < 2 + SLACK_S / 2
    assert worker.popen.returncode == 0
    assert ann.dashboard()["workers"]["total"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_asked_to_end_lets_a_short_job_finish(
    stack: Stack, cast: Cast, worker: Process, number: signal.Signals
) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=2)
    worker.send(number)
    assert worker.wait(15)
    seen = ann.job(job["id"])
    assert (seen["state"], seen["attempt"]) == ("SUCCEEDED", 1)


def test_a_second_signal_hands_the_job_back_at_once(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=30)
    worker.send(signal.SIGTERM)
    time.sleep(0.5)
    worker.send(signal.SIGTERM)
    assert worker.wait(2 + SLACK_S)
    seen = ann.wait_job(job["id"], ["PENDING"], timeout_s=5)
    assert seen["reason"] == "withdrawn" or seen["attempt"] == 1


def test_no_child_outlives_a_killed_worker(stack: Stack, cast: Cast, worker: Process) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=30)
    under = worker.descendants()
    worker.send(signal.SIGKILL)
    _, alive = psutil.wait_procs(under, timeout=2)
    assert not alive
    assert ann.cancel(job["id"]).status_code == 200


def test_a_worker_waits_for_a_redis_that_is_away_and_goes_on(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    stack.processes.pop("redis").kill()
    time.sleep(3)
    assert worker.alive
    stack.start_redis()
    made = ann.submit([probe("it", "x")])
    assert ann.wait(made["id"], timeout_s=15)["state"] == "SUCCEEDED"
    assert worker.alive


def test_a_job_goes_on_while_redis_is_away(stack: Stack, cast: Cast, worker: Process) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=4)
    stack.processes.pop("redis").kill()
    time.sleep(5)
    stack.start_redis()
    over = ann.wait_job(job["id"], ["SUCCEEDED"], timeout_s=20)
    assert over["attempt"] == 1


def test_progress_rises_smoothly_and_names_its_phase(stack: Stack, cast: Cast) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=4, ticks=40)
    seen = []
    while not seen or seen[-1]["state"] == "RUNNING":
        seen.append(ann.job(job["id"]))
        time.sleep(0.3)
    steps = [row["progress"] for row in seen]
    assert steps == sorted(steps)
    assert len({step for step in steps if 0 < step < 1}) >= 2
    assert seen[-1]["progress"] == 1.0
    assert (seen[-1]["phase"], seen[-1]["tiles_done"], seen[-1]["tiles_total"]) == ("run", 40, 40)


def test_messages_that_are_none_do_not_stop_a_worker(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    stack.redis().rpush("rq:queue:cpu", "nobody", b"\xff\xfe")
    rq.Queue("cpu", connection=stack.redis(), serializer=JSONSerializer).enqueue(
        "jobs.running.tasks.run_job", args=("x", None, 3), job_id="odd"
    )
    made = ann.submit([probe("it", "x")])
    assert ann.wait(made["id"], timeout_s=20)["state"] == "SUCCEEDED"
    assert worker.alive
    # what workers killed before this left goes with their leases
    until(
        lambda: stack.redis().llen("rq:queue:cpu:intermediate") == 0,
        timeout_s=20,
        what="nothing left between queue and worker",
    )


def shown(queue: rq.Queue, worker: Process) -> tuple[str, str | None]:
    """State and present job of a worker, as RQ's pages read them."""
    (row,) = [row for row in rq.Worker.all(queue=queue) if row.pid == worker.pid]
    return row.get_state(), row.get_current_job_id()


def test_rqs_own_pages_see_the_worker_and_what_it_runs(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    queue = rq.Queue("cpu", connection=stack.redis(), serializer=JSONSerializer)
    begun(stack, ann, seconds=2)
    until(lambda: shown(queue, worker)[0] == "busy", timeout_s=5, what="busy", every_s=0.02)
    message = shown(queue, worker)[1]
    assert message in queue.started_job_registry.get_job_ids()
    ann.wait(ann.workflows[-1])
    until(lambda: shown(queue, worker) == ("idle", None), timeout_s=5, what="idle")
    assert message not in queue.started_job_registry.get_job_ids()
    assert not stack.redis().exists(f"rq:job:{message}")


def test_files_of_an_attempt_whose_worker_was_killed_go_with_the_next_one(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    job = begun(stack, ann, seconds=4)
    tenant = "from jobs.models import Job; print(Job.objects.across_tenants('t').get(uuid='{}').tenant_id)"
    owner = stack.manage("shell", "--verbosity", "0", "-c", tenant.format(job["id"])).split()[-1]
    left = stack.data / "results" / owner / job["workflow_id"] / job["id"] / "a1" / "half-written"
    worker.kill()
    left.parent.mkdir(parents=True)
    left.write_text("x")
    stack.start()
    over = ann.wait_job(job["id"], ["SUCCEEDED"], timeout_s=60)
    assert over["attempt"] == 2
    assert not left.exists()


def test_a_draining_worker_takes_no_job_until_it_is_let_again(
    stack: Stack, cast: Cast, worker: Process
) -> None:
    (ann,) = cast("ann")
    drain = "from jobs.models import Worker; Worker.objects.update(draining={})"
    stack.manage("shell", "-c", drain.format(True))
    made = ann.submit([probe("it", "x")])
    time.sleep(2)
    (job,) = ann.workflow(made["id"])["jobs"]
    assert job["state"] == "PENDING"
    stack.manage("shell", "-c", drain.format(False))
    assert ann.wait(made["id"], timeout_s=20)["state"] == "SUCCEEDED"


def test_a_gpu_worker_without_a_model_says_how_to_get_one_and_takes_no_job(
    stack: Stack, cast: Cast
) -> None:
    (ann,) = cast("ann")
    env = {**stack.env, "INSTANSEG_MODEL": str(stack.folder / "absent.pt")}
    log = stack.folder / "logs" / "cold.log"
    command = [sys.executable, "manage.py", "run_worker", "--queue", "gpu", "--name", "cold"]
    cold = Process("cold", command, env=env, log=log)
    try:
        until(lambda: "INSTANSEG_MODEL" in cold.tail(), timeout_s=30, what="the sentence")
        assert "takes no job" in cold.tail()
        assert "Traceback" not in cold.tail()
        made = ann.submit([probe("it", "x", queue="gpu")])
        time.sleep(2)
        (job,) = by_key(ann.workflow(made["id"])).values()
        assert (job["state"], job["reason"]) in {("PENDING", "no_worker"), ("PENDING", "")}
        assert cold.alive
        assert cold.stop() < 2 + SLACK_S
    finally:
        cold.kill()
