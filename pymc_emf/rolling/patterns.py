"""Patterns: graphs of several variables that differ only in their leaves.

A leaf is what of other variables a graph reads, element by element, or a constant. The graph of a
pattern is written once, for one member, with placeholders for what differs.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.traversal import toposort
from pytensor.tensor.basic import Alloc, Join, MakeVector
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

__all__ = ["Pattern", "Reader", "Slot", "build", "find_patterns"]

#: Fewer isomorphic variables than this are left alone: there is nothing to gain.
MIN_MEMBERS = 3


@dataclass(eq=False)
class Slot:
    """A leaf in which the members of a pattern differ.

    Attributes
    ----------
    placeholder : TensorVariable
        Stands for the leaf in the pattern's graph.
    table : ndarray, shape (members, *shape of the leaf)
        Of each member, the positions of the elements that it reads, or its constant.
    constant : bool
        Which of the two.
    """

    placeholder: TensorVariable
    table: np.ndarray
    constant: bool


@dataclass(eq=False)
class Pattern:
    """The graph that several items share.

    Attributes
    ----------
    members : ndarray of int
        Indices of the items.
    roots : list of Variable
        The roots of one item's graph, in terms of the placeholders of ``slots``.
    slots : list of Slot
    """

    members: np.ndarray
    roots: list[Variable]
    slots: list[Slot]

    @property
    def constants_differ(self) -> bool:
        return any(slot.constant for slot in self.slots)


@dataclass(eq=False)
class _Graph:
    """One item as it was read: a key that isomorphic graphs share, and how to build it again."""

    key: Hashable
    steps: list[tuple[Apply, list[tuple]]]
    roots: list[tuple]
    leaves: list[np.ndarray]
    positions: list[bool]
    types: list[TensorType]


class Reader:
    """Reads graphs down to their leaves.

    Indexing, stacking and reshaping of known variables is not computation: whatever does only
    that is a leaf, an array of positions in the flat vector of all known elements.

    Parameters
    ----------
    outputs : sequence of Variable
        All that will be read.
    positions : mapping
        Each known variable to the positions of its elements.
    data : mapping
        Variables to what they are replaced by.
    """

    def __init__(
        self,
        outputs: Sequence[Variable],
        positions: Mapping[Variable, np.ndarray],
        data: Mapping[Variable, Variable],
    ):
        self._positions: dict[Variable, np.ndarray] = dict(positions)
        self._constants: dict[Variable, np.ndarray] = {}
        self._data = data
        for graphs in (list(data.values()), list(outputs)):
            for node in toposort(graphs):
                self._rearrange(node)

    def _constant(self, variable: Variable) -> Any:
        """Value of a constant, None if it is none."""
        if isinstance(variable, Constant):
            return variable.data
        return self._constants.get(variable)

    def _rearrange(self, node: Apply) -> None:
        """Follow known elements and constants through an Op that only rearranges."""
        data = _rearranged(node)
        if data is None or node.outputs[0] in self._positions:
            return
        inputs = [self._data.get(v, v) for v in node.inputs]
        others = [self._constant(v) for i, v in enumerate(inputs) if i not in data]
        if any(value is None for value in others):
            return
        for known, get in (
            (self._positions, self._positions.get),
            (self._constants, self._constant),
        ):
            found = {i: get(inputs[i]) for i in data}
            if any(value is None for value in found.values()):
                continue
            values = [found[i] if i in found else self._constant(v) for i, v in enumerate(inputs)]
            storage: list[list[Any]] = [[None]]
            node.op.perform(node, values, storage)
            dtype = np.intp if known is self._positions else node.outputs[0].type.dtype
            known[node.outputs[0]] = np.asarray(storage[0][0]).astype(dtype)

    def read(self, roots: Sequence[Variable], tag: Hashable = ()) -> _Graph:
        """Read the graph of one item; items whose tags differ are never isomorphic.

        The roots that have an owner are expanded, even where they are known themselves.
        """
        order = _post_order([r.owner for r in roots if r.owner is not None], self._is_leaf)
        index = {node: i for i, node in enumerate(order)}
        graph = _Graph((), [], [], [], [], [])
        views: dict[Hashable, int] = {}

        def refer(variable: Variable, node: Apply | None, i: int) -> tuple:
            if node is not None or variable.owner is None:
                variable = self._data.get(variable, variable)
                positions = self._positions.get(variable)
                if positions is not None:
                    identity = positions.shape, positions.tobytes()
                    if identity not in views:
                        views[identity] = len(graph.leaves)
                        graph.leaves.append(positions)
                        graph.positions.append(True)
                        graph.types.append(_with_shape(variable.type, positions.shape))
                    return "view", views[identity], variable.type.dtype, positions.shape
                constant = self._constant(variable)
                if constant is not None or isinstance(variable, Constant):
                    if not _may_differ(variable, node, i):
                        return "fixed", _frozen(variable, constant), variable
                    value = np.asarray(constant)
                    graph.leaves.append(value)
                    graph.positions.append(False)
                    graph.types.append(_with_shape(variable.type, value.shape))
                    # PyTensor takes the smallest type that holds a number: 0.5 is a float32
                    return "constant", len(graph.leaves) - 1, value.dtype.kind, value.shape
            if variable.owner is None:
                # what a distribution would draw plays no part in its density
                drawing = isinstance(variable.type, RandomType)
                ignored = drawing and _is_distribution(node)
                return "other", None if ignored else variable, variable
            return "node", index[variable.owner], variable.owner.outputs.index(variable)

        for node in order:
            refs = [refer(variable, node, i) for i, variable in enumerate(node.inputs)]
            graph.steps.append((node, refs))
        graph.roots = [refer(root, None, 0) for root in roots]
        graph.key = (
            tag,
            tuple((node.op, tuple(map(_comparable, refs))) for node, refs in graph.steps),
            tuple(map(_comparable, graph.roots)),
        )
        return graph

    def _is_leaf(self, variable: Variable) -> bool:
        variable = self._data.get(variable, variable)
        return variable.owner is None or variable in self._positions or variable in self._constants


def build(graphs: Sequence[_Graph], members: Sequence[int]) -> Pattern:
    """Write the common graph of isomorphic items, from that of the first."""
    first = graphs[0]
    slots: dict[int, Slot] = {}
    leaves: list[Variable] = []
    for i, leaf_type in enumerate(first.types):
        table = np.stack([graph.leaves[i] for graph in graphs])
        if first.positions[i] or not (table == table[:1]).all():
            dtype = leaf_type.dtype if first.positions[i] else _widest(table.dtype)
            placeholder: Any = TensorType(dtype, leaf_type.shape)()
            slots[i] = Slot(placeholder, table, not first.positions[i])
        else:
            placeholder = pt.constant(table[0], dtype=leaf_type.dtype)
        leaves.append(placeholder)
    built: list[Apply] = []

    def variable(ref: tuple) -> Variable:
        match ref:
            case ("node", node, output):
                return built[node].outputs[output]
            case (("view" | "constant"), leaf, *_):
                return leaves[leaf]
            case _:
                return ref[-1]

    for node, refs in first.steps:
        inputs = [variable(ref) for ref in refs]
        built.append(node.clone_with_new_inputs(inputs, strict=False))
    return Pattern(
        np.asarray(members), [variable(ref) for ref in first.roots], list(slots.values())
    )


def find_patterns(graphs: Sequence[_Graph], *, roll: bool = True) -> list[Pattern]:
    """Gather isomorphic items, in the order of their first members."""
    groups: dict[Hashable, list[int]] = {}
    for i, graph in enumerate(graphs):
        groups.setdefault(graph.key, []).append(i)
    patterns = []
    for members in groups.values():
        together = roll and len(members) >= MIN_MEMBERS
        for part in [members] if together else [[i] for i in members]:
            patterns.append(build([graphs[i] for i in part], part))
    return patterns


def _rearranged(node: Apply) -> range | None:
    """Which inputs an Op rearranges, None if it does anything else."""
    match node.op:
        case (
            Subtensor() | AdvancedSubtensor() | DimShuffle() | Reshape() | SpecifyShape() | Alloc()
        ):
            return range(1)
        case MakeVector():
            return range(len(node.inputs))
        case Join():
            return range(1, len(node.inputs))
    return None


def _post_order(outputs: Sequence[Apply], is_leaf: Callable[[Variable], bool]) -> list[Apply]:
    """Nodes, inputs first, in an order that depends on the structure alone."""
    done: dict[Apply, None] = {}
    stack = list(reversed(outputs))
    while stack:
        node = stack[-1]
        waiting = [v.owner for v in reversed(node.inputs) if not is_leaf(v) and v.owner not in done]
        if waiting and node not in done:
            stack.extend(waiting)
        else:
            done.setdefault(stack.pop())
    return list(done)


def _may_differ(variable: Variable, node: Apply | None, i: int) -> bool:
    """Whether a constant may become a placeholder: not where it sets a shape or an index."""
    if not isinstance(variable.type, TensorType):
        return False
    if variable.type.dtype.startswith("float") or node is None:
        return True
    return isinstance(node.op, Elemwise) or (isinstance(node.op, RandomVariable) and i >= 2)


def _is_distribution(node: Apply | None) -> bool:
    if node is None:
        return False
    return isinstance(node.op, RandomVariable) or hasattr(node.op, "extended_signature")


def _with_shape(tensor_type: Any, shape: tuple[int, ...]) -> TensorType:
    return TensorType(tensor_type.dtype, shape=shape)


def _widest(dtype: np.dtype) -> np.dtype:
    """Type of constants that differ, which had a type each."""
    if dtype.kind == "f" and dtype.itemsize < np.dtype(pytensor.config.floatX).itemsize:
        return np.dtype(pytensor.config.floatX)
    return dtype


def _frozen(variable: Variable, constant: Any) -> Hashable:
    if isinstance(constant, np.ndarray):
        return variable.type, constant.shape, constant.tobytes()
    return variable.type, str(constant)


def _comparable(ref: tuple) -> Hashable:
    return ref[:2] if ref[0] in ("fixed", "other") else ref
