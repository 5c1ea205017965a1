"""Scenario 5: a branch name means nothing outside its tenant."""

from __future__ import annotations

import time

from tests.client import Client, probe
from tests.conftest import Cast
from tests.stack import Stack


def starts_within(stack: Stack, client: Client, branch: str, limit_s: float) -> None:
    """Submit a no-op and see its body start in less than `limit_s`."""
    client.submit([probe("quick", branch)])
    accepted = time.monotonic()
    span = stack.wait_started(client, "quick")
    assert span.start - accepted < limit_s


def test_5_the_same_branch_name_of_another_user_does_not_wait(stack: Stack, cast: Cast) -> None:
    ann, bob = cast("ann", "bob")
    ann.submit([probe("long", "main", seconds=2)])
    stack.wait_started(ann, "long")
    starts_within(stack, bob, "main", 0.5)
    assert stack.spans(ann)[0].end is None, "ann's job was over: the check proved nothing"


def test_5_names_that_join_to_the_same_text_are_different_lanes(stack: Stack, cast: Cast) -> None:
    plain = cast("t")[0]
    joined = stack.client(f"{plain.user}:x")
    joined.submit([probe("long", "y", seconds=2)])
    stack.wait_started(joined, "long")
    starts_within(stack, plain, "x:y", 0.5)
    assert stack.spans(joined)[0].end is None, "the long job was over: the check proved nothing"
