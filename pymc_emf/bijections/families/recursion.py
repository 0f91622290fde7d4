r"""A scan whose step draws a random variable, as a bijection with the gate inside the recursion."""

from collections.abc import Callable
from typing import Any, cast

import pytensor.tensor as pt

from pymc.logprob.scan import convert_outer_out_to_in
from pymc.logprob.transforms import Transform
from pytensor.graph.basic import Variable
from pytensor.graph.replace import graph_replace, vectorize_graph
from pytensor.scan.op import Scan
from pytensor.scan.utils import FieldInfo, ScanArgs
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections.core.base import Bijection

__all__ = ["Recursion", "values_before"]

Build = Callable[[TensorVariable], Bijection | None]


class Recursion(Bijection):
    r""":math:`u_t = \lambda_t f(\varepsilon_t; u_{<t}) + (1 - \lambda_t)\varepsilon_t` by one scan.

    Time is the first axis. The step may refer to any number of earlier values, and carry states
    of its own, as long as one random variable is drawn in it. The inverse knows all values: it is
    vectorised over time if the step carries no other state, and a scan otherwise.

    Parameters
    ----------
    variable : TensorVariable
        Output of a ``MeasurableScan``.
    transform : Transform or None
        From the variable to its value, elementwise.
    build : callable
        Bijection of what the step draws, to its value under the transform.
    """

    def __init__(
        self,
        variable: TensorVariable,
        transform: Transform | None,
        build: Build,
        gateable: bool,
        gate: TensorVariable | None = None,
    ):
        self.variable = variable
        self.transform = transform
        self.build = build
        self.gateable = gateable
        self.gate = gate

    @classmethod
    def of(
        cls, variable: TensorVariable, transform: Transform | None, build: Build
    ) -> "Recursion | None":
        """Bijection of a scan's output, None if there is none of what its step draws."""
        _, _, drawn = _parse(variable)
        site = build(drawn)
        return None if site is None else cls(variable, transform, build, site.gateable)

    def _constrain(self, value, drawn):
        x = value if self.transform is None else self.transform.backward(value)
        return x.astype(drawn.dtype)

    def forward(self, noise):
        args, _, drawn = _parse(self.variable)
        noise_t = _sequence(args, noise)
        value_t, log_det_t = self._site_of_step(args, drawn).forward(noise_t)
        value_t = value_t.astype(noise.dtype)
        # its shape may be known less well than that of the state it becomes
        x_t = drawn.type.filter_variable(self._constrain(value_t, drawn))
        replaced: dict[Variable, Variable] = {drawn: x_t}
        for name in ("inner_out_mit_sot", "inner_out_sit_sot", "inner_out_nit_sot"):
            if outputs := getattr(args, name):
                setattr(args, name, graph_replace(outputs, replaced, strict=False))
        value, log_det = _run(args, [value_t, log_det_t])
        return value, log_det.sum()

    def inverse(self, value):
        args, drawn = known = self._knowing(value)
        if args.inner_out_mit_sot or args.inner_out_sit_sot or args.inner_out_shared:
            return self._inverse_by_scan(value, known)
        # each step's distribution is known: a batch of them, with time as its first axis
        constants = dict(zip(args.inner_in_non_seqs, args.outer_in_non_seqs, strict=True))
        along_time = dict(zip(args.inner_in_seqs, args.outer_in_seqs, strict=True))
        (batch,) = cast(list, graph_replace([drawn], constants, strict=False))
        site = self.build(vectorize_graph(batch, along_time))
        if site is None:
            return self._inverse_by_scan(value, known)
        if self.gate is not None:
            site = site.gated(self.gate)
        return site.inverse(value)

    def _inverse_by_scan(self, value, known):
        args, drawn = known
        value_t = _sequence(args, value)
        outputs = self._site_of_step(args, drawn).inverse(value_t)
        noise, log_det = _run(args, list(outputs))
        return noise.astype(value.dtype), log_det.sum()

    def _site_of_step(self, args: ScanArgs, drawn: TensorVariable) -> Bijection:
        site = cast(Bijection, self.build(drawn))
        return site if self.gate is None else site.gated(_sequence(args, self.gate))

    def _knowing(self, value):
        """Parse the scan with the values as sequences rather than states."""
        args, outer, drawn = _parse(self.variable)
        x = self._constrain(value, drawn)
        n_before, buffer = _initial(args, outer)
        if buffer is not None:
            x = pt.concatenate([buffer[:n_before], x], axis=0)
        args = convert_outer_out_to_in(args, [outer], {outer: x}, inner_out_fn=lambda _: [])
        return args, drawn

    def gated(self, gate):
        return Recursion(self.variable, self.transform, self.build, self.gateable, gate)


def _parse(variable: TensorVariable) -> tuple[ScanArgs, TensorVariable, TensorVariable]:
    """Arguments of the scan, its output in question, and the same variable inside the step."""
    node = variable.owner
    args = ScanArgs.from_node(node, clone=True)
    outer = args.outer_outputs[node.outputs.index(variable)]
    drawn: Any = args.get_alt_field(cast(FieldInfo, args.find_among_fields(outer)), "inner_out")
    _drop_generators(args)
    return args, outer, drawn


def values_before(variable: TensorVariable) -> int:
    """Number of values that a scan's output holds before that of the first step."""
    args, outer, _ = _parse(variable)
    return _initial(args, outer)[0]


def _drop_generators(args: ScanArgs) -> None:
    """Remove the random generators, of which nothing is drawn any more."""
    for fields in (
        ("outer_in_shared", "inner_in_shared", "inner_out_shared", "outer_out_shared"),
        ("outer_in_non_seqs", "inner_in_non_seqs"),
    ):
        for name in fields:
            kept = [v for v in getattr(args, name) if not isinstance(v.type, RandomType)]
            setattr(args, name, kept)


def _sequence(args: ScanArgs, outer: TensorVariable) -> TensorVariable:
    """Add a sequence to the scan; return the variable that stands for its element."""
    inner = outer[0].type()
    args.outer_in_seqs.append(outer)
    args.inner_in_seqs.append(inner)
    return inner


def _initial(args: ScanArgs, outer: TensorVariable) -> tuple[int, TensorVariable | None]:
    """Number of values before the first step, and the buffer that they stand at the start of."""
    for kind in ("sit_sot", "mit_sot"):
        outputs = getattr(args, f"outer_out_{kind}")
        if outer in outputs:
            i = outputs.index(outer)
            taps = (-1,) if kind == "sit_sot" else args.mit_sot_in_slices[i]
            return -min(taps), getattr(args, f"outer_in_{kind}")[i]
    return 0, None


def _run(args: ScanArgs, outputs: list[TensorVariable]) -> list[TensorVariable]:
    """Run the scan; return what these variables of the step are at each step."""
    args.inner_out_nit_sot = [*args.inner_out_nit_sot, *outputs]
    args.outer_in_nit_sot = [args.n_steps] * len(args.inner_out_nit_sot)
    op = Scan(args.inner_inputs, args.inner_outputs, args.info)
    return op.make_node(*args.outer_inputs).outputs[-len(outputs) :]
