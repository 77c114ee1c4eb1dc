"""The layer-scale group: the coarsest part of a scaling group."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from quotientnet.group import ScalingGroup, as_group
from quotientnet.symmetry.equations import Equations
from quotientnet.symmetry.links import named_group
from quotientnet.symmetry.scales import PINNED, LogScale
from quotientnet.units import Term

__all__ = ["layer_scale_group"]


def layer_scale_group(group: ScalingGroup) -> ScalingGroup:
    """The elements of a group that scale each tensor uniformly: rangamani2019 Prop. 2.1, §2.1.

    Args:
        group: Any scaling group, such as ``discover(model, inputs).group``.

    Returns:
        The subgroup, the group itself if it scales all tensors uniformly.

    Example:
        >>> import torch
        >>> import quotientnet as qn
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> group = qn.discover(model, torch.randn(5, 4)).group
        >>> qn.layer_scale_group(group).names
        ('0: all of 0.weight, all of 0.bias, all of 2.weight (exponent -1)',)
    """
    group = as_group(group, "layer_scale_group")
    if all(not term.axes for terms in group.incidence.values() for term in terms):
        return group
    equations = Equations()
    generators = equations.fresh(group.dimension).terms[0][1].numpy()
    unknowns = torch.from_numpy(_unknowns(equations, group.classes, generators))
    for name, terms in group.incidence.items():
        shape = group.layout[name].shape
        scale = LogScale(
            [
                (t.coefficient, unknowns[torch.from_numpy(t.index.copy())])
                for t in terms
            ],
            shape,
        )
        equations.uniform(scale, range(len(shape)))
    solution = equations.solve()
    basis = sparse.csr_array(solution.basis[solution.row[generators]])
    scales = group.classes @ basis[:, np.unique(basis.indices)]
    # Every entry of a tensor has the exponents of its first one.
    incidence, rows = {}, []
    for name, terms in group.incidence.items():
        rows.append(sum(t.coefficient * scales[[t.index.flat[0]]] for t in terms))
        index = np.full([1] * len(group.layout[name].shape), len(rows) - 1)
        incidence[name] = [Term(index, 1)]
    classes = sparse.csr_array(sparse.vstack(rows)) if rows else scales
    return named_group(group.layout, incidence, classes)[0]


def _unknowns(
    equations: Equations, classes: sparse.csr_array, generators
) -> np.ndarray:
    """The unknown of each class: a generator's own, or one tied to a combination of them."""
    unknowns = np.full(classes.shape[0], PINNED)
    for row in range(classes.shape[0]):
        columns = classes.indices[classes.indptr[row] : classes.indptr[row + 1]]
        values = classes.data[classes.indptr[row] : classes.indptr[row + 1]]
        if len(columns) == 1 and values[0] == 1:
            unknowns[row] = generators[columns[0]]
        elif len(columns):
            own = equations.fresh()
            sums = [
                (int(v), torch.tensor(generators[c])) for c, v in zip(columns, values)
            ]
            equations.equal(own, LogScale(sums, ()))
            unknowns[row] = int(own.terms[0][1])
    return unknowns
