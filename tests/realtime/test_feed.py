"""The live feed: who is refused, what comes first, what is told, what is replayed."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.conf import settings as django_settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.db import SessionStore

from jobs import services
from jobs.models import Event
from jobs.scheduling import promotion
from jobs.signals import job_progressed, swept
from labsched.ratelimit import RateLimit
from realtime import receivers
from realtime.routing import websocket_application
from tenants.models import ApiToken, Membership, Tenant, User
from tests import factories
from tests.realtime.conftest import listening, refusal
from workflows.models import Workflow

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("house")]


@sync_to_async
def submit(key: str, *keys: str) -> Workflow:
    """A workflow of probes in a lane."""
    owner = Tenant.objects.filter(key=key).first() or Tenant(key=key)
    return factories.workflow(owner, [factories.job(each, "lane") for each in keys])


@sync_to_async
def run_next(owner: Tenant) -> None:
    """Promote, start and end whatever is next."""
    for pk, attempt in promotion.promote():
        services.start(pk, attempt, "cpu-0")
        services.succeed(pk, attempt, artifacts=[], summary={})


@sync_to_async
def session_of(user: User) -> dict[str, str]:
    """The headers of a signed-in browser."""
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = django_settings.AUTHENTICATION_BACKENDS[0]
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    return {"Cookie": f"{django_settings.SESSION_COOKIE_NAME}={session.session_key}"}


def is_state(kind: str, state: str) -> Any:
    return lambda message: message["type"] == kind and message["data"]["state"] == state


# --- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "user_id=", "user_id=../../etc", "user_id=a%20b"])
async def test_who_is_nobody_is_refused(query: str) -> None:
    assert await refusal(query) == 4401


async def test_a_wrong_token_is_refused_and_its_subprotocol_repeated() -> None:
    assert await refusal(subprotocols=["bearer.wrong"]) == 4401
    assert await refusal("user_id=ann", subprotocols=["bearer.wrong"]) == 4401


async def test_an_id_is_refused_where_ids_are_not_trusted(settings: Any) -> None:
    settings.TRUST_USER_HEADER = False
    assert await refusal("user_id=ann") == 4401


@pytest.mark.parametrize("workflow", ["2569044b-157a-42e0-bbb1-6bc12e49adb6", "*", "", "../x"])
async def test_an_unknown_workflow_is_refused(workflow: str) -> None:
    assert await refusal(f"user_id=ann&workflow={workflow}") == 4404


async def test_a_foreign_workflow_is_refused_like_an_unknown_one() -> None:
    flow = await submit("ann", "a")
    await submit("eve", "e")
    assert await refusal(f"user_id=eve&workflow={flow.pk}") == 4404
    assert await refusal(f"user_id=new&workflow={flow.pk}") == 4404


async def test_browsers_of_other_sites_are_refused() -> None:
    foreign = {"Origin": "https://evil.example"}
    assert await refusal("user_id=ann", headers=foreign) != 4404
    async with listening("user_id=ann", headers={"Origin": "https://lab.example"}) as feed:
        assert (await feed.next())["type"] == "snapshot"


async def test_a_tenant_that_connects_too_fast_is_refused_whoever_it_comes_as(
    settings: Any,
) -> None:
    settings.RATE_LIMIT_PER_S = 0.5
    flow = await submit("ann", "a")
    _, token = await sync_to_async(ApiToken.issue)(flow.tenant, "script")
    async with listening("user_id=ann"):
        assert await refusal("user_id=ann") == 1013
        assert await refusal(subprotocols=[f"bearer.{token}"]) == 1013
        assert await refusal("user_id=ann&workflow=unknown") == 1013
        assert await refusal("user_id=../..") == 4401
        async with listening("user_id=bob"):
            pass


async def test_a_socket_that_was_charged_at_the_door_is_charged_once(settings: Any) -> None:
    settings.RATE_LIMIT_PER_S = 1.0
    door = RateLimit(websocket_application())
    accepted = []
    for _ in range(3):
        path, header = "/api/progress/ws?user_id=ann", (b"x-user-id", b"ann")
        socket = WebsocketCommunicator(door, path, [header])
        accepted.append((await socket.connect(timeout=10))[0])
        await socket.disconnect(timeout=10)
    assert accepted == [True, True, False]


# --- told ----------------------------------------------------------------------------------


async def test_the_snapshot_comes_first_and_then_every_state() -> None:
    flow = await submit("ann", "a", "b")
    owner = flow.tenant
    async with listening("user_id=ann") as feed:
        first = await feed.next()
        assert (first["type"], set(first)) == ("snapshot", {"type", "seq", "at", "data"})
        assert [row["id"] for row in first["data"]["workflows"]] == [str(flow.pk)]
        assert {job["job_id"] for job in first["data"]["jobs"]} == {"a", "b"}
        await run_next(owner)
        await run_next(owner)
        seen = await feed.until(is_state("workflow", "SUCCEEDED"))
    told = [message for message in seen if message["type"] in ("job", "workflow")]
    assert [message["seq"] for message in told] == sorted({message["seq"] for message in told})
    assert told[0]["seq"] > first["seq"]
    of_a = [m["data"]["state"] for m in told if m["data"].get("job_id") == "a"]
    assert of_a == ["QUEUED", "RUNNING", "SUCCEEDED"]


async def test_a_tenant_listens_before_its_first_write() -> None:
    async with listening("user_id=new") as feed:
        first = await feed.next()
        assert (first["seq"], first["data"]) == (0, {"workflows": [], "jobs": []})
        flow = await submit("new", "a")
        await run_next(flow.tenant)
        seen = await feed.until(is_state("workflow", "SUCCEEDED"))
    assert {m["data"]["state"] for m in seen if m["type"] == "job"} >= {"RUNNING", "SUCCEEDED"}


async def test_nobody_hears_of_anothers_jobs() -> None:
    await submit("eve")
    async with listening("user_id=eve") as feed:
        await feed.next()
        flow = await submit("ann", "a")
        await run_next(flow.tenant)
        assert await feed.silent()


async def test_a_feed_of_one_workflow_tells_nothing_of_another() -> None:
    watched, other = await submit("ann", "a"), await submit("ann", "b")
    async with listening(f"user_id=ann&workflow={watched.pk}") as feed:
        first = await feed.next()
        assert [job["job_id"] for job in first["data"]["jobs"]] == ["a"]
        await run_next(watched.tenant)
        await run_next(other.tenant)
        seen = await feed.until(is_state("workflow", "SUCCEEDED"))
        assert await feed.silent()
    assert {m["data"]["workflow_id"] for m in seen if m["type"] == "job"} == {str(watched.pk)}


# --- who listens ---------------------------------------------------------------------------


async def test_a_token_listens_by_subprotocol() -> None:
    flow = await submit("ann", "a")
    token = (await sync_to_async(ApiToken.issue)(flow.tenant, "script"))[1]
    async with listening(subprotocols=["other", f"bearer.{token}"]) as feed:
        assert [row["id"] for row in (await feed.next())["data"]["workflows"]] == [str(flow.pk)]


async def test_a_session_listens_until_the_membership_ends() -> None:
    flow = await submit("lab", "a")
    user = await sync_to_async(User.objects.create_user)("ann")
    membership = await sync_to_async(Membership.objects.create)(user=user, tenant=flow.tenant)
    async with listening(headers=await session_of(user)) as feed:
        assert len((await feed.next())["data"]["workflows"]) == 1
        await sync_to_async(membership.delete)()
        closed = await feed.socket.receive_output(10)
    assert (closed["type"], closed["code"]) == ("websocket.close", 4401)


# --- ticks ---------------------------------------------------------------------------------


async def test_ticks_are_at_most_four_a_second_and_the_latest_arrives() -> None:
    flow = await submit("ann", "a")
    job = str((await sync_to_async(factories.jobs_of)(flow))["a"].uuid)
    async with listening("user_id=ann") as feed:
        start = await feed.next()
        for done in range(1, 41):
            tick = {"job": job, "tiles_done": done, "tiles_total": 40}
            await sync_to_async(job_progressed.send_robust)(
                None, tenant_id=flow.tenant_id, workflow_id=flow.pk, data=tick
            )
        seen = await feed.until(lambda message: message["data"].get("tiles_done") == 40)
    ticks = [message for message in seen if message["type"] == "progress"]
    assert 1 <= len(ticks) <= 6
    done_told = [message["data"]["tiles_done"] for message in ticks]
    assert done_told == sorted(done_told)
    assert {message["seq"] for message in ticks} == {start["seq"]}, "ticks carry the last number"


async def test_the_queue_is_told_to_everyone_without_names() -> None:
    async with listening("user_id=ann") as feed:
        await feed.next()
        receivers._last_queue.update(at=float("-inf"), data=None)
        await sync_to_async(swept.send_robust)(None)
        told = await feed.next()
    assert told["type"] == "queue"
    assert told["data"] == {"active_users": 0, "workers": {"total": 4, "busy": 0}}


# --- replay --------------------------------------------------------------------------------


async def test_since_replays_every_state_that_was_missed() -> None:
    async with listening("user_id=ann") as feed:
        seq = (await feed.next())["seq"]
    flow = await submit("ann", "a", "b")
    await run_next(flow.tenant)
    async with listening(f"user_id=ann&since={seq}") as feed:
        seen = await feed.until(is_state("job", "SUCCEEDED"))
    assert [m["data"]["state"] for m in seen if m["type"] == "job"] == [
        "QUEUED",
        "RUNNING",
        "SUCCEEDED",
    ]
    assert "snapshot" not in {message["type"] for message in seen}


async def test_since_the_present_is_silence() -> None:
    await submit("ann", "a")
    async with listening("user_id=ann") as feed:
        seq = (await feed.next())["seq"]
    async with listening(f"user_id=ann&since={seq}") as feed:
        assert await feed.silent()


@pytest.mark.parametrize("since", ["-1", "x", "", "999999", "9" * 30, "gone"])
async def test_what_is_no_longer_kept_is_a_fresh_start(since: str) -> None:
    flow = await submit("ann", "a", "b")
    await run_next(flow.tenant)
    if since == "gone":
        events = Event.objects.for_tenant(flow.tenant)
        await sync_to_async(events.filter(seq=2).delete)()
        since = "1"
    async with listening(f"user_id=ann&since={since}") as feed:
        first = await feed.next()
    assert first["type"] == "snapshot"
    assert first["data"]["reset"] is True


async def test_events_arrive_late_but_whole_when_every_nudge_is_lost(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realtime.consumers.POLL_S", 0.3)
    monkeypatch.setattr("realtime.courier.post", lambda *_, **__: None)
    flow = await submit("ann", "a")
    async with listening("user_id=ann") as feed:
        await feed.next()
        await run_next(flow.tenant)
        assert await feed.until(is_state("job", "SUCCEEDED"))


async def test_without_redis_the_feed_asks_the_database(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": ["redis://127.0.0.1:1/0"]},
        }
    }
    flow = await submit("ann", "a")
    async with listening("user_id=ann") as feed:
        assert (await feed.next())["type"] == "snapshot"
        await run_next(flow.tenant)
        assert await feed.until(is_state("job", "SUCCEEDED"))
