"""Elementwise: the few operations that make one formula serve a single float and a float64 array alike.

A formula typed with `Real` takes either; its first `Real` argument decides which it is, and later ones may be
floats beside an array. Plain arithmetic needs no help; what is here does. Floats stay Python floats (a NumPy
scalar would not survive JSON), so a single value costs no NumPy call except in `holds`.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Real = TypeVar("Real", float, FloatArray)


def holds(condition: Any) -> bool:
    """Return whether a condition is true, everywhere if it is an array; for the asserts of formulas.

    >>> holds(1.0 >= 0.0), holds(np.array([1.0, -1.0]) >= 0.0)
    (True, False)
    """
    return bool(condition.all()) if isinstance(condition, np.ndarray) else bool(condition)


def larger(a: Real, b: Real | float) -> Real:
    """Return the larger of two, element by element.

    >>> larger(1.0, 2.0), larger(np.array([1.0, 3.0]), 2.0).tolist()
    (2.0, [2.0, 3.0])
    """
    x, y = _untyped(a), _untyped(b)
    answer: Real = np.maximum(x, y) if _any_array(x, y) else max(x, y)
    return answer


def smaller(a: Real, b: Real | float) -> Real:
    """Return the smaller of two, element by element.

    >>> smaller(1.0, 2.0), smaller(np.array([1.0, 3.0]), 2.0).tolist()
    (1.0, [1.0, 2.0])
    """
    x, y = _untyped(a), _untyped(b)
    answer: Real = np.minimum(x, y) if _any_array(x, y) else min(x, y)
    return answer


def clipped(x: Real, low: float, high: float) -> Real:
    """Return `x` held between two bounds.

    >>> clipped(1.5, 0.0, 1.0), clipped(np.array([-1.0, 0.5]), 0.0, 1.0).tolist()
    (1.0, [0.0, 0.5])
    """
    assert low <= high, (low, high)
    return smaller(larger(x, low), high)


def exponential(x: Real) -> Real:
    """Return e to the power of `x`.

    >>> exponential(0.0), exponential(np.array([0.0])).tolist()
    (1.0, [1.0])
    """
    z = _untyped(x)
    answer: Real = _untyped(np.exp(z) if _any_array(z) else math.exp(z))
    return answer


def arc_tangent(x: Real) -> Real:
    """Return the arc tangent of `x`, in radians.

    >>> arc_tangent(0.0), arc_tangent(np.array([0.0])).tolist()
    (0.0, [0.0])
    """
    z = _untyped(x)
    answer: Real = _untyped(np.arctan(z) if _any_array(z) else math.atan(z))
    return answer


def _untyped(x: Any) -> Any:
    return x  # mypy checks a constrained type twice and calls one branch of each test above dead


def _any_array(*xs: Any) -> bool:
    return any(isinstance(x, np.ndarray) for x in xs)
