"""The graph of a submission, on plain values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.dag import BadGraph, topological_order


def test_without_edges_the_submitted_order_stays() -> None:
    assert topological_order(["c", "a", "b"], {}) == [0, 1, 2]


def test_a_dependency_on_a_later_job_puts_that_first() -> None:
    assert topological_order(["a", "b", "c"], {"a": ["c"]}) == [1, 2, 0]


@pytest.mark.parametrize(
    ("keys", "upstream", "named"),
    [
        (["a", "b", "a"], {}, "a"),
        (["a"], {"a": ["a"]}, "itself"),
        (["a"], {"a": ["ghost"]}, "ghost"),
        (["a", "b"], {"b": ["a", "a"]}, "twice"),
        (["a", "b", "c"], {"a": ["c"], "b": ["a"], "c": ["b"]}, "a → c → b → a"),
    ],
)
def test_a_bad_graph_names_the_culprits(
    keys: list[str], upstream: dict[str, list[str]], named: str
) -> None:
    with pytest.raises(BadGraph, match=named):
        topological_order(keys, upstream)


@pytest.mark.parametrize("direction", [1, -1])
def test_a_chain_of_5000_is_ordered_either_way_round(direction: int) -> None:
    keys = [f"j{n}" for n in range(5000)][::direction]
    upstream = {f"j{n}": [f"j{n - 1}"] for n in range(1, 5000)}
    order = topological_order(keys, upstream)
    assert [keys[place] for place in order] == [f"j{n}" for n in range(5000)]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], dict[str, list[str]]]:
    size = draw(st.integers(1, 12))
    keys = draw(st.permutations([f"k{n}" for n in range(size)]))
    upstream = {
        f"k{n}": sorted(draw(st.sets(st.sampled_from([f"k{m}" for m in range(n)]))))
        for n in range(1, size)
    }
    return list(keys), upstream


@given(graphs())
def test_every_job_comes_after_its_upstream(graph: tuple[list[str], dict[str, list[str]]]) -> None:
    keys, upstream = graph
    place = {
        keys[position]: turn for turn, position in enumerate(topological_order(keys, upstream))
    }
    assert sorted(place.values()) == list(range(len(keys)))
    assert all(place[above] < place[key] for key, names in upstream.items() for above in names)
