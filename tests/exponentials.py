"""Groups and coefficients of small sums of exponentials."""

import numpy as np

import quotientnet as qn


def dense_group(exponents):
    """A group on one vector with any matrix of exponents."""
    exponents = np.asarray(exponents, dtype=np.int64)
    layout = qn.ParameterLayout({"a": (len(exponents),)})
    terms = {"a": [qn.Term(np.arange(len(exponents)), 1)]}
    names = [f"g{j}" for j in range(exponents.shape[1])]
    return qn.ScalingGroup(layout, terms, exponents, names)


def pairs(rows, columns):
    """Rows and columns of a matrix and of its inverse: normalised sharpness."""
    layout = qn.ParameterLayout({"h": (rows, columns), "w": (rows, columns)})
    units = [
        qn.Unit(name, count, (qn.Scale("h", axis), qn.Scale("w", axis, -1)))
        for name, count, axis in (("row", rows, 0), ("column", columns, 1))
    ]
    return qn.ScalingGroup.from_units(layout, units)


def numbers(seed, size, spread=1.0):
    return np.exp(spread * np.random.default_rng(seed).standard_normal(size))


def chain(*widths):
    """Matrices between layers of units; the first and last layers are fixed."""
    shapes = {f"w{i}": (b, a) for i, (a, b) in enumerate(zip(widths, widths[1:]))}
    units = [
        qn.Unit(f"h{i}", n, (qn.Scale(f"w{i - 1}", 0), qn.Scale(f"w{i}", 1, -1)))
        for i, n in enumerate(widths[1:-1], 1)
    ]
    return qn.ScalingGroup.from_units(qn.ParameterLayout(shapes), units)
