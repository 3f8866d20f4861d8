"""The points at which the crash matrix kills a process are names of the product, which may move."""

from __future__ import annotations

import pytest
from e2e import test_crash_matrix as matrix
from harness.killable import POINTS, Point, resolve

FUNCTIONS = {name: point for name, point in POINTS.items() if point.when != "half"}


@pytest.mark.parametrize("point", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_point_before_or_after_a_function_names_one_that_exists(point: Point) -> None:
    owner, name = resolve(point)

    assert point.when in {"before", "after"}
    assert callable(getattr(owner, name))


def test_every_point_is_a_cell_of_the_crash_matrix_and_every_cell_has_its_point() -> None:
    cells = {cell.point for cell in matrix.WORKER_CELLS}
    cells |= {point for point, _ in [*matrix.CELERY_CELLS, *matrix.PRODUCER_CELLS]}

    assert set(POINTS) == cells | {matrix.RESCUED_AT, matrix.RESCUER_AT}
