"""One formula for a float and for an array: the helpers give the same numbers either way, and plain floats back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseload.formulas import elementwise

numbers = st.floats(-50.0, 50.0)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_arrays_do_what_floats_do(pairs: list[tuple[float, float]]):
    """Element by element, the array forms agree with the plain ones."""
    a, b = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    assert elementwise.larger(a, b).tolist() == [max(p) for p in pairs]
    assert elementwise.smaller(a, b).tolist() == [min(p) for p in pairs]
    assert elementwise.clipped(a, -1.0, 1.0).tolist() == [min(max(x, -1.0), 1.0) for x in a]
    assert elementwise.exponential(a) == pytest.approx(np.array([math.exp(x) for x in a]))
    assert elementwise.arc_tangent(a) == pytest.approx(np.array([math.atan(x) for x in a]))
    assert elementwise.holds(a >= b) == all(x >= y for x, y in pairs)


@given(numbers, numbers)
def test_floats_stay_plain_floats(a: float, b: float):
    """A float in is a Python float out, so that results go into JSON as they are."""
    outs = [elementwise.larger(a, b), elementwise.smaller(a, b), elementwise.clipped(a, -1.0, 1.0)]
    outs += [elementwise.exponential(a), elementwise.arc_tangent(a)]
    assert {type(out) for out in outs} == {float}


def test_a_float_meets_an_array():
    """Whichever comes first, one array makes the answer an array."""
    assert elementwise.larger(np.array([1.0, 3.0]), 2.0).tolist() == [2.0, 3.0]
    assert elementwise.smaller(np.array([1.0, 3.0]), 2.0).tolist() == [1.0, 2.0]
