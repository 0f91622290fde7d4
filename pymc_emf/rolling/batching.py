"""One graph for many members: known elements, inputs taken from them, the vectorised graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytensor.tensor as pt

from pytensor.graph.basic import Apply
from pytensor.graph.traversal import ancestors, toposort
from pytensor.scan.op import Scan
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from pymc_emf._compat import vectorize_node

__all__ = ["Body", "Input", "Values", "replicate"]


class Values:
    """Known elements, spread over several variables, and found again by their positions.

    Parameters
    ----------
    size : int
        Number of positions.
    """

    def __init__(self, size: int):
        self.size = size
        self._blocks: list[TensorVariable] = []
        self._block_of = np.full(size, -1)
        self._offset = np.zeros(size, dtype=np.intp)
        self._joined: dict[tuple[int, ...], TensorVariable] = {}

    @classmethod
    def of(cls, flat: TensorVariable, size: int) -> "Values":
        values = cls(size)
        values.add(flat, np.arange(size))
        return values

    def add(self, variable: TensorVariable, positions: np.ndarray) -> None:
        """Make a variable known, given the positions of its elements."""
        self.add_flat(variable.reshape((positions.size,)), positions)

    def add_flat(
        self, vector: TensorVariable, positions: np.ndarray, offset: np.ndarray | None = None
    ) -> None:
        """Make elements of a vector known: by default all, otherwise those at ``offset``."""
        flat = positions.ravel()
        self._block_of[flat] = len(self._blocks)
        self._offset[flat] = np.arange(flat.size) if offset is None else offset.ravel()
        self._blocks.append(vector)

    def take(self, positions: np.ndarray) -> TensorVariable:
        """Elements at an array of positions, in its shape."""
        flat = positions.ravel()
        owners = self._block_of[flat]
        blocks = tuple(int(i) for i in np.unique(owners))
        if blocks[0] < 0:
            raise KeyError("an element is asked for before it is known")
        if len(blocks) == 1:
            vector, shift = self._blocks[blocks[0]], np.zeros(1, dtype=np.intp)
        else:
            sizes = [0]
            for i in blocks:
                sizes.append(sizes[-1] + self._blocks[i].type.shape[0])
            shift = np.zeros(len(self._blocks), dtype=np.intp)
            shift[list(blocks)] = sizes[:-1]
            if blocks not in self._joined:
                self._joined[blocks] = pt.concatenate([self._blocks[i] for i in blocks])
            vector = self._joined[blocks]
        index = self._offset[flat] + (shift[owners] if len(blocks) > 1 else 0)
        return _elements(vector, index).reshape(positions.shape)


def _elements(vector: TensorVariable, index: np.ndarray) -> TensorVariable:
    """``vector[index]``, by slicing where that is possible: its gradient is far cheaper."""
    first = int(index[0])
    strides = np.unique(np.diff(index))
    if len(index) == 1:
        return vector[first : first + 1]
    if len(strides) == 1 and strides[0] > 0:
        stride = int(strides[0])
        if stride == 1 and first == 0 and vector.type.shape[0] == len(index):
            return vector
        return vector[first : int(index[-1]) + 1 : stride]
    if len(strides) == 1 and strides[0] == 0:
        return pt.broadcast_to(vector[first], (len(index),))
    return vector[index]


@dataclass(eq=False)
class Input:
    """What a body reads: elements of known values, or constants.

    Attributes
    ----------
    placeholder : TensorVariable
    table : ndarray, shape (members, *shape)
        Positions of each member's elements in ``source``, or its constants.
    source : Values or None
    """

    placeholder: TensorVariable
    table: np.ndarray
    source: Values | None

    def take(self, table: np.ndarray) -> TensorVariable:
        if self.source is None:
            return pt.constant(table, dtype=self.placeholder.dtype)
        return self.source.take(table).astype(self.placeholder.dtype)


@dataclass(eq=False)
class Body:
    """What is computed for each member of a pattern.

    Attributes
    ----------
    inputs : list of Input
    outputs : list of TensorVariable
        Of one member. In :func:`evaluate` the first becomes known, at ``positions``.
    positions : ndarray, shape (members, *shape of the first output)
    """

    inputs: list[Input]
    outputs: list[TensorVariable]
    positions: np.ndarray = field(default_factory=lambda: np.zeros((0,), dtype=np.intp))

    def __post_init__(self):
        self.reads = [
            {i for i, given in enumerate(self.inputs) if given.placeholder in above}
            for above in (set(ancestors([output])) for output in self.outputs)
        ]

    def batch(self, rows: np.ndarray, which: Sequence[int] | None = None) -> list[TensorVariable]:
        """Outputs of several members, with a leading axis unless no input differs."""
        which = range(len(self.outputs)) if which is None else which
        needed = set().union(*(self.reads[i] for i in which))
        replacements = {}
        for i in needed:
            given = self.inputs[i]
            table, _ = alike(given.table[rows], 0)
            replacements[given.placeholder] = given.take(table)
        return replicate([self.outputs[i] for i in which], replacements)


def alike(table: np.ndarray, axis: int) -> tuple[np.ndarray, bool]:
    """Drop the axis of members where they are all alike."""
    first = table.take(0, axis=axis)
    if table.shape[axis] == 1 or (table == np.expand_dims(first, axis)).all():
        return first, False
    return table, True


def replicate(
    outputs: Sequence[TensorVariable], replacements: Mapping[TensorVariable, TensorVariable]
) -> list[TensorVariable]:
    """Write a graph again with other inputs, which may all have one further, leading axis."""
    # PyTensor's own functions would clone the graphs of the replacements as well, and call a Scan
    # once for each member
    memo: dict[Any, Any] = dict(replacements)
    for node in toposort(list(outputs), blockers=list(replacements)):
        inputs = [memo.get(v, v) for v in node.inputs]
        if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
            continue
        if not any(_has_more_axes(new, old) for new, old in zip(inputs, node.inputs, strict=True)):
            rebuilt: Any = node.clone_with_new_inputs(inputs, strict=False).outputs
        elif isinstance(node.op, Scan) and _can_be_batched(node, inputs):
            rebuilt = _batch_scan(node, inputs)
        else:
            rebuilt = vectorize_node(node.op, node, *inputs)
            rebuilt = rebuilt.outputs if isinstance(rebuilt, Apply) else rebuilt
        for old, new in zip(node.outputs, rebuilt, strict=True):
            memo.setdefault(old, new)
    return [memo.get(output, output) for output in outputs]


def _has_more_axes(new: Any, old: Any) -> bool:
    return isinstance(old.type, TensorType) and new.type.ndim > old.type.ndim


def _can_be_batched(node: Apply, inputs: Sequence[Any]) -> bool:
    op: Any = node.op
    fixed = [(inputs[0], node.inputs[0])]
    fixed += zip(op.outer_nitsot(inputs), op.outer_nitsot(node.inputs), strict=True)
    simple = not (op.info.as_while or op.info.n_mit_mot or op.info.n_untraced_sit_sot)
    return simple and not any(_has_more_axes(new, old) for new, old in fixed)


@dataclass(eq=False)
class _Argument:
    """What the steps of a Scan read.

    Attributes
    ----------
    outer : TensorVariable
        From outside of the Scan. Its leading axis is that of members if it is batched.
    inner : list of TensorVariable
        A step's own inputs: of a state one for each lag.
    batched : bool
    """

    outer: Any
    inner: Sequence[Any]
    batched: bool

    @property
    def placeholders(self) -> dict[Any, Any]:
        """Inputs of a step for all members, in place of those for one."""
        if not self.batched:
            return {v: v.type() for v in self.inner}
        return {v: pt.tensor(dtype=v.dtype, shape=(None, *v.type.shape)) for v in self.inner}

    @property
    def steps_first(self) -> Any:
        return pt.moveaxis(self.outer, 0, 1) if self.batched else self.outer

    def spread(self, size: Any) -> None:
        """Give a copy to each member."""
        self.outer = pt.broadcast_to(self.outer, (size, *tuple(self.outer.shape)))
        self.batched = True


def _batch_scan(node: Apply, inputs: Sequence[Any]) -> list[TensorVariable]:
    """One Scan whose steps work on a batch; the leading axis of ``inputs`` is that of members."""
    op: Any = node.op
    step = op.fgraph.unfreeze()

    def arguments(select: Any, inner: Sequence[Sequence[Any]]) -> list[_Argument]:
        outer = zip(select(inputs), select(node.inputs), inner, strict=True)
        return [_Argument(new, own, _has_more_axes(new, old)) for new, old, own in outer]

    states = [
        *arguments(op.outer_mitsot, op.inner_mitsot_grouped(step.inputs)),
        *arguments(op.outer_sitsot, [[v] for v in op.inner_sitsot(step.inputs)]),
    ]
    sequences = arguments(op.outer_seqs, [[v] for v in op.inner_seqs(step.inputs)])
    constants = arguments(op.outer_non_seqs, [[v] for v in op.inner_non_seqs(step.inputs)])

    both = zip(inputs, node.inputs, strict=True)
    size = next(new.shape[0] for new, old in both if _has_more_axes(new, old))
    placeholders, written = _batch_step(step.outputs, states, [*sequences, *constants], size)
    batch_op = Scan(
        [placeholders[v] for v in step.inputs], written, op.info, mode=op.mode, name=op.name
    )
    outputs: Any = batch_op(
        inputs[0],
        *(argument.steps_first for argument in [*sequences, *states]),
        *op.outer_nitsot(inputs),
        *(argument.outer for argument in constants),
        return_list=True,
    )
    return [
        pt.moveaxis(new, 1, 0) if _has_more_axes(new, old) else new
        for new, old in zip(outputs, node.outputs, strict=True)
    ]


def _batch_step(
    outputs: Sequence[Any], states: Sequence[_Argument], others: Sequence[_Argument], size: Any
) -> tuple[dict[Any, Any], list[Any]]:
    """Inputs and outputs of a step for all members; states that differ among them are spread.

    The first outputs are the states that a step writes.
    """
    while True:  # a state is a batch as soon as anything that enters it is
        placeholders: dict[Any, Any] = {}
        for argument in [*states, *others]:
            placeholders |= argument.placeholders
        written: list[Any] = replicate(outputs, placeholders)
        batched = [_has_more_axes(*pair) for pair in zip(written, outputs, strict=True)]
        grown = [s for s, now in zip(states, batched, strict=False) if now and not s.batched]
        if not grown:
            break
        for state in grown:
            state.spread(size)
    for i, state in enumerate(states):
        if state.batched and not batched[i]:
            like = placeholders[state.inner[0]]
            written[i] = pt.broadcast_to(written[i], like.shape)
    return placeholders, written
