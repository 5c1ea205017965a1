"""Ids, numbers and rows that machine code writes are those that Python writes."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.imaging.cells import Cells
from jobs.imaging.export.batch import Batch, gathered
from jobs.imaging.export.identity import object_ids
from jobs.imaging.export.text import Template
from tests.imaging.exported import blocks_of, label_map

whole = st.integers(-(2**31) + 1, 2**31 - 1)
UNTIMED = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def block() -> Cells:
    return blocks_of(label_map())[0]


@pytest.fixture(scope="module")
def batch(block: Cells) -> Batch:
    return gathered([(block, 1)], "key")


@UNTIMED
@given(st.lists(st.tuples(whole, whole), min_size=1, max_size=5), st.text(max_size=20))
def test_ids_are_those_of_uuid5(seeds: list[tuple[int, int]], key: str) -> None:
    namespace = uuid.uuid5(uuid.NAMESPACE_OID, key)
    made = object_ids(np.array(seeds, np.int32), key)
    assert [bytes(row).decode() for row in made] == [
        str(uuid.uuid5(namespace, f"{x},{y}")) for x, y in seeds
    ]


@UNTIMED
@given(hundredths=st.integers(-(10**11), 10**11))
def test_a_length_is_written_as_python_writes_it(batch: Batch, hundredths: int) -> None:
    one = replace(batch, ranks=batch.ranks[:1], area=np.array([hundredths]))
    assert bytes(Template().area().render(one)).decode() == repr(hundredths / 100)


@UNTIMED
@given(value=st.floats(-1e5, 1e5))
def test_a_measurement_keeps_eight_decimals(batch: Batch, value: float) -> None:
    one = replace(batch, ranks=batch.ranks[:1])
    text = bytes(Template().value(0).render(one, values=np.array([[value]])))
    assert float(text) == pytest.approx(value, abs=6e-9, rel=1e-9)


@UNTIMED
@given(value=st.integers(-(10**9), 10**9))
def test_four_decimals_are_written_as_python_writes_them(batch: Batch, value: int) -> None:
    one = replace(batch, ranks=batch.ranks[:1])
    text = bytes(Template().value(0).render(one, values=np.array([[value / 1e4]])))
    assert float(text) == value / 1e4
    assert len(text.split(b".")[1]) <= 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_what_is_no_number_is_told(batch: Batch, value: float) -> None:
    one = replace(batch, ranks=batch.ranks[:1])
    values = np.array([[value]])
    assert bytes(Template().value(0).render(one, values=values)) == b'"NaN"'
    assert bytes(Template(not_a_number="").value(0).render(one, values=values)) == b""


def test_a_ring_is_written_either_way_from_its_origin(block: Cells, batch: Batch) -> None:
    rows = Template().ring(y_first=True, closed=True, origin=(7, 9)).text("\n").render(batch)
    for index, row in enumerate(bytes(rows).splitlines()):
        ring = block.ring(index) - [7, 9]
        assert json.loads(row) == np.vstack([ring, ring[:1]])[:, ::-1].tolist()
