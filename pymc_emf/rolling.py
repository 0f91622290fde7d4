"""Isomorphic graphs found in a model, and evaluated together: as one batch or as one scan.

A *pattern* is the graph of several variables that differ only in their leaves: in the elements of
other variables that they read, and in their constants. Its graph is written once, for one member,
with placeholders for what differs.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.replace import _vectorize_node
from pytensor.graph.traversal import ancestors, graph_inputs, toposort
from pytensor.scan.op import Scan
from pytensor.tensor.basic import Alloc, Join, MakeVector
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.shape import Reshape, SpecifyShape
from pytensor.tensor.subtensor import AdvancedSubtensor, Subtensor
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Batch", "Body", "Input", "Loop", "Pattern", "Reader", "Values", "evaluate", "schedule"]

#: Fewer isomorphic variables than this are left alone: there is nothing to gain.
MIN_MEMBERS = 3
#: Fewest steps of a scan.
MIN_STEPS = 4
#: Most levels of the graph that one step of a scan may span.
MAX_PERIOD = 8


# --- finding -----------------------------------------------------------------------------------


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


# --- evaluating --------------------------------------------------------------------------------


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
            table, _ = _alike(given.table[rows], 0)
            replacements[given.placeholder] = given.take(table)
        return replicate([self.outputs[i] for i in which], replacements)


def _alike(table: np.ndarray, axis: int) -> tuple[np.ndarray, bool]:
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
            rebuilt = _vectorize_node(node.op, node, *inputs)
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


def _batch_scan(node: Apply, inputs: Sequence[Any]) -> list[TensorVariable]:
    """One Scan whose steps work on a batch; the leading axis of ``inputs`` is that of members."""
    op: Any = node.op
    size = next(
        new.shape[0]
        for new, old in zip(inputs, node.inputs, strict=True)
        if _has_more_axes(new, old)
    )
    inner_graph = op.fgraph.unfreeze()
    inner_inputs, inner_outputs = inner_graph.inputs, inner_graph.outputs
    # what a step reads, and the state it writes: [outer input, its inner inputs, inner output]
    groups: list[list[Any]] = []
    n_states = op.info.n_mit_sot + op.info.n_sit_sot
    inner_states = [
        *op.inner_mitsot_grouped(inner_inputs),
        *([v] for v in op.inner_sitsot(inner_inputs)),
    ]
    for new, old, inner in zip(
        [*op.outer_mitsot(inputs), *op.outer_sitsot(inputs), *op.outer_seqs(inputs),
         *op.outer_non_seqs(inputs)],
        [*op.outer_mitsot(node.inputs), *op.outer_sitsot(node.inputs),
         *op.outer_seqs(node.inputs), *op.outer_non_seqs(node.inputs)],
        [*inner_states, *([v] for v in op.inner_seqs(inner_inputs)),
         *([v] for v in op.inner_non_seqs(inner_inputs))],
        strict=True,
    ):  # fmt: skip
        groups.append([new, inner, _has_more_axes(new, old)])

    while True:  # a state is a batch as soon as anything that enters it is
        arguments: dict[Any, Any] = {}
        for _, inner, batched in groups:
            for v in inner:
                shape = (None, *v.type.shape) if batched else None
                arguments[v] = v.type() if shape is None else pt.tensor(dtype=v.dtype, shape=shape)
        written: list[Any] = list(replicate(inner_outputs, arguments))
        grown = [
            i for i in range(n_states)
            if not groups[i][2] and _has_more_axes(written[i], inner_outputs[i])
        ]  # fmt: skip
        if not grown:
            break
        for i in grown:
            groups[i][0] = pt.broadcast_to(groups[i][0], (size, *tuple(groups[i][0].shape)))
            groups[i][2] = True
    for i in range(n_states):
        if groups[i][2] and not _has_more_axes(written[i], inner_outputs[i]):
            like = arguments[groups[i][1][0]]
            written[i] = pt.broadcast_to(written[i], like.shape)

    n_seqs = op.info.n_seqs
    time_first = [
        pt.moveaxis(new, 0, 1) if batched and not n_states + n_seqs <= i else new
        for i, (new, _, batched) in enumerate(groups)
    ]
    states, sequences = time_first[:n_states], time_first[n_states : n_states + n_seqs]
    batch_op = Scan(
        [arguments[v] for v in inner_inputs], written, op.info, mode=op.mode, name=op.name
    )
    outer = [
        inputs[0], *sequences, *states, *op.outer_nitsot(inputs), *time_first[n_states + n_seqs :]
    ]  # fmt: skip
    outputs: Any = batch_op(*outer, return_list=True)
    return [
        pt.moveaxis(new, 1, 0) if _has_more_axes(new, old) else new
        for new, old in zip(outputs, node.outputs, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Batch:
    """Members of one pattern that can be evaluated side by side."""

    pattern: int
    rows: np.ndarray


@dataclass(frozen=True, eq=False)
class Loop:
    """Members of several patterns that can be evaluated step by step.

    Attributes
    ----------
    groups : list of (int, ndarray)
        In order of evaluation within a step: the pattern, and its rows, of shape
        (steps, members).
    lags : tuple of int
        How many steps back a step reads, ascending.
    """

    groups: list[tuple[int, np.ndarray]]
    lags: tuple[int, ...]

    @property
    def n_steps(self) -> int:
        return len(self.groups[0][1])


@dataclass(frozen=True, eq=False)
class Result:
    """Further outputs of some members: stacked, or one that serves for all."""

    pattern: int
    rows: np.ndarray
    outputs: list[TensorVariable]


def evaluate(
    plan: Iterable[Batch | Loop], bodies: Sequence[Body], known: Values
) -> Iterator[Result]:
    """Evaluate all members of all bodies; ``known`` gains their first outputs.

    Yields the outputs after the first.
    """
    for part in plan:
        if isinstance(part, Batch):
            body = bodies[part.pattern]
            first, *others = body.batch(part.rows)
            known.add(first, body.positions[part.rows])
            yield Result(part.pattern, part.rows, others)
        else:
            yield from _scan(part, bodies, known)


def _scan(loop: Loop, bodies: Sequence[Body], known: Values) -> Iterator[Result]:
    """Evaluate a loop as one scan."""
    owned = [bodies[p].positions[rows] for p, rows in loop.groups]  # (steps, members, ...)
    inside = np.zeros(known.size, dtype=bool)
    for positions in owned:
        inside[positions] = True
    sequences: list[TensorVariable] = []
    constants: list[TensorVariable] = []

    def argument(given: Input, table: np.ndarray) -> Callable[[Any, Any], TensorVariable]:
        """Pass in what a step reads from outside; returns how the step finds it."""
        first, varies = _alike(table, 0)
        group, at = (sequences, len(sequences)) if varies else (constants, len(constants))
        group.append(given.take(first))
        return lambda sequence, constant: (sequence if varies else constant)[at]

    # Positions within a step are those of the last one.
    readers: list[list[Callable[..., TensorVariable]]] = []
    recurrent: list[set[int]] = []
    for p, rows in loop.groups:
        readers.append([])
        recurrent.append(set())
        for i, given in enumerate(bodies[p].inputs):
            table = given.table[rows]
            last = inside[table[-1]] if given.source is known else np.zeros(1, dtype=bool)
            if not last.any():
                table, batched = _alike(table, 1)
                find = argument(given, table)
                readers[-1].append(
                    lambda sequence, constant, local, find=find: find(sequence, constant)
                )
                continue
            recurrent[-1].add(i)
            if not last.all():
                readers[-1].append(_mixed(given, table, last, argument))
                continue
            positions, _ = _alike(table[-1], 0)
            readers[-1].append(
                lambda sequence, constant, local, positions=positions, given=given: local.take(
                    positions
                ).astype(given.placeholder.dtype)
            )

    n_back = max(loop.lags, default=0)
    started = _initial(loop, bodies, owned, n_back, inside, known)
    extra: list[list[int]] = []  # outputs after the first that depend on earlier steps
    outside: list[list[int]] = []
    for (p, _), reads in zip(loop.groups, recurrent, strict=True):
        others = range(1, len(bodies[p].outputs))
        extra.append([o for o in others if bodies[p].reads[o] & reads])
        outside.append([o for o in others if not bodies[p].reads[o] & reads])

    n_sequences, n_groups, n_lags = len(sequences), len(loop.groups), len(loop.lags)
    shared = [
        v
        for v in graph_inputs([o for p, _ in loop.groups for o in bodies[p].outputs])
        if isinstance(v, SharedVariable) and not isinstance(v.type, RandomType)
    ]

    def step(*arguments):
        sequence, arguments = arguments[:n_sequences], arguments[n_sequences:]
        taps, constant = arguments[: n_groups * n_lags], arguments[n_groups * n_lags :]
        local = Values(known.size)
        for g, positions in enumerate(owned):
            for j, lag in enumerate(loop.lags):
                local.add(taps[g * n_lags + j], positions[-1 - lag])
        firsts, others = [], []
        for g, (p, _) in enumerate(loop.groups):
            body = bodies[p]
            replacements = {
                given.placeholder: read(sequence, constant, local)
                for given, read in zip(body.inputs, readers[g], strict=True)
            }
            first, *more = replicate(
                [body.outputs[0], *(body.outputs[o] for o in extra[g])], replacements
            )
            shape = _squeezed(owned[g][-1]).shape
            first = pt.specify_shape(first.reshape(shape), shape)
            local.add(first, owned[g][-1])
            firsts.append(first.astype(started[g].dtype) if loop.lags else first)
            others += more
        return [*firsts, *others]

    outputs_info: list[Any] = []
    for g in range(n_groups):
        if not loop.lags:
            outputs_info.append(None)
        elif loop.lags == (1,):
            outputs_info.append({"initial": started[g][0], "taps": [-1]})
        else:
            outputs_info.append({"initial": started[g], "taps": [-lag for lag in loop.lags]})
    outputs_info += [None] * sum(map(len, extra))
    outputs = pytensor.scan(
        step,
        sequences=sequences,
        outputs_info=outputs_info,
        non_sequences=[*constants, *shared],
        n_steps=loop.n_steps,
        return_updates=False,
        strict=True,
    )
    outputs = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    later = iter(outputs[n_groups:])
    for g, (p, rows) in enumerate(loop.groups):
        body = bodies[p]
        known.add(outputs[g], owned[g])
        flat = rows.ravel()
        found: dict[int, TensorVariable] = {}
        for o in extra[g]:
            out = next(later)
            core = body.outputs[o].ndim
            batched = out.ndim == core + 2
            shape = (flat.size if batched else loop.n_steps, *tuple(out.shape)[out.ndim - core :])
            out = out.reshape(shape)
            if not batched and rows.shape[1] > 1:
                out = pt.repeat(out, rows.shape[1], axis=0)
            found[o] = out
        if outside[g]:
            found.update(zip(outside[g], body.batch(flat, outside[g]), strict=True))
        yield Result(p, flat, [found[o] for o in sorted(found)])


def _mixed(given: Input, table: np.ndarray, last: np.ndarray, argument):
    """Read a leaf of which some elements come from earlier steps and some from outside."""
    find = argument(given, table[:, ~last])
    order = np.empty(last.size, dtype=np.intp)
    order[np.concatenate([np.flatnonzero(last), np.flatnonzero(~last)])] = np.arange(last.size)
    shape = last.shape[1:] if last.shape[0] == 1 else last.shape

    def read(sequence, constant, local):
        elements = pt.concatenate(
            [local.take(table[-1][last]).astype(given.placeholder.dtype), find(sequence, constant)]
        )
        return elements[order].reshape(shape)

    return read


def _squeezed(positions: np.ndarray) -> np.ndarray:
    """Drop the axis of members where there is only one."""
    return positions[0] if len(positions) == 1 else positions


def _initial(loop, bodies, owned, n_back, inside, known) -> list[TensorVariable]:
    """Values of the steps before the first, oldest first, as far as they are read."""
    if not n_back:
        return []
    home = np.full(known.size, -1)  # where in the last step's outputs, by position
    step_of = np.full(known.size, -1)
    sizes = np.cumsum([0, *(positions[0].size for positions in owned)])
    for start, positions in zip(sizes, owned, strict=False):
        for k, of_step in enumerate(positions):
            home[of_step.ravel()] = start + np.arange(of_step.size)
            step_of[of_step.ravel()] = k
    before = np.full((n_back, sizes[-1]), -1)
    for p, rows in loop.groups:
        for given in bodies[p].inputs:
            if given.source is not known:
                continue
            table = given.table[rows].reshape(loop.n_steps, -1)
            reference = table[-1]
            lag = np.where(inside[reference], loop.n_steps - 1 - step_of[reference], 0)
            for k in range(min(n_back, loop.n_steps)):
                early = lag > k
                before[k - lag[early] + n_back, home[reference[early]]] = table[k][early]
    anything = before.max()
    before = np.where(before < 0, anything, before)  # what is never read may be anything
    initial = []
    for start, positions in zip(sizes, owned, strict=False):
        shape = _squeezed(positions[0]).shape
        piece = before[:, start : start + positions[0].size]
        initial.append(known.take(piece.reshape((n_back, *shape))))
    return initial


# --- scheduling --------------------------------------------------------------------------------


def schedule(
    reads: Sequence[np.ndarray],
    owned: Sequence[np.ndarray],
    members: Sequence[np.ndarray],
    size: int,
) -> list[Batch | Loop]:
    """Order in which all members can be evaluated, in as few parts as possible.

    Parameters
    ----------
    reads, owned : sequence of ndarray, shape (members, elements)
        For each pattern, the positions that each member reads, and those that it makes known.
    members : sequence of ndarray
        For each pattern, its members' places in some topological order.
    size : int
        Number of positions.
    """
    n = len(reads)
    pattern_of = np.full(size, -1)
    member_of = np.full(size, -1)
    for p in range(n):
        for row, positions in enumerate(owned[p]):
            pattern_of[positions] = p
            member_of[positions] = members[p][row]
    edges = [(p, int(q)) for p in range(n) for q in np.unique(pattern_of[reads[p]]) if q >= 0]
    links = coo_array(
        (np.ones(len(edges)), tuple(np.array(edges, dtype=np.intp).reshape(-1, 2).T)), shape=(n, n)
    )
    # Patterns that depend on each other in a circle are evaluated together, level by level.
    _, component = connected_components(links, directed=True, connection="strong")
    before: dict[int, set[int]] = {int(c): set() for c in component}
    for p, q in edges:
        if component[p] != component[q]:
            before[int(component[p])].add(int(component[q]))
    plan: list[Batch | Loop] = []
    for c in TopologicalSorter(before).static_order():
        patterns = [p for p in range(n) if component[p] == c]
        if len(patterns) == 1 and (patterns[0], patterns[0]) not in edges:
            plan.append(Batch(patterns[0], np.arange(len(members[patterns[0]]))))
        else:
            waves = _waves(patterns, reads, members, member_of)
            plan += _roll(waves, reads, owned, size)
    return plan


Wave = list[tuple[int, np.ndarray]]


def _waves(patterns, reads, members, member_of) -> list[Wave]:
    """Gather the members by the length of the longest path that leads to them."""
    level: dict[int, int] = {}
    places = sorted(
        (int(members[p][row]), p, row) for p in patterns for row in range(len(members[p]))
    )
    waves: list[dict[int, list[int]]] = []
    for place, p, row in places:
        parents = np.unique(member_of[reads[p][row]])
        level[place] = 1 + max((level[m] for m in parents.tolist() if m in level), default=-1)
        if level[place] == len(waves):
            waves.append({})
        waves[level[place]].setdefault(p, []).append(row)
    return [[(p, np.sort(rows)) for p, rows in sorted(wave.items())] for wave in waves]


def _roll(waves: list[Wave], reads, owned, size: int) -> Iterator[Batch | Loop]:
    """Turn runs of waves that repeat into loops."""
    shape = [tuple((p, len(rows)) for p, rows in wave) for wave in waves]
    start = 0
    while start < len(waves):
        found = _longest(waves, shape, start, reads, owned, size)
        if found is None:
            for p, rows in waves[start]:
                yield Batch(p, rows)
            start += 1
        else:
            loop, n_waves = found
            yield loop
            start += n_waves


def _longest(waves, shape, start, reads, owned, size) -> tuple[Loop, int] | None:
    for period in range(1, MAX_PERIOD + 1):
        stop = start + period
        while stop < len(waves) and shape[stop] == shape[stop - period]:
            stop += 1
        n_steps = (stop - start) // period
        while n_steps >= MIN_STEPS:
            groups = [
                (p, np.stack([waves[start + k * period + w][g][1] for k in range(n_steps)]))
                for w in range(period)
                for g, (p, _) in enumerate(waves[start + w])
            ]
            lags = _lags(groups, reads, owned, size)
            if lags is not None:
                return Loop(groups, lags), n_steps * period
            n_steps //= 2
    return None


def _lags(groups, reads, owned, size) -> tuple[int, ...] | None:
    """How many steps back the steps read, None if they do not all read alike."""
    step_of = np.full(size, -1)
    home = np.full(size, -1)
    start = 0
    for p, rows in groups:
        positions = owned[p][rows]
        n_steps = len(positions)
        flat = positions.reshape(n_steps, -1)
        step_of[flat] = np.arange(n_steps)[:, None]
        home[flat] = start + np.arange(flat.shape[1])
        start += flat.shape[1]
    n_steps = len(groups[0][1])
    before = np.full((n_steps, start), -1)
    lags: set[int] = set()
    for p, rows in groups:
        table = reads[p][rows].reshape(n_steps, -1)
        reference = table[-1]
        inner = step_of[reference] >= 0
        if (step_of[table[:, ~inner]] >= 0).any():
            return None
        table, reference = table[:, inner], reference[inner]
        lag = n_steps - 1 - step_of[reference]
        lags.update(lag.tolist())
        expected = np.arange(n_steps)[:, None] - lag  # the step that each step should read
        early = expected < 0
        if (np.where(early, -1, expected) != step_of[table]).any():
            return None
        if (~early & (home[table] != home[reference])).any():
            return None
        if early.any():
            # steps before the first must be one and the same for all who read them
            k, e = np.nonzero(early)
            at = expected[k, e] + n_steps, home[reference[e]]
            for step, element, position in zip(*at, table[k, e], strict=True):
                if before[step, element] not in (-1, position):
                    return None
                before[step, element] = position
    return tuple(sorted(lags - {0}))
