"""The structured layer: a whole model as one bijection of standard normal noise (EMF Eq. 5-8)."""

import copy

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, final

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

from pytensor.tensor.sharedvar import SharedVariable
from pytensor.tensor.variable import TensorVariable

from pymc_emf.bijections import Bijection, Identity, bijection_from_rv
from pymc_emf.bijections.core.base import bypass_reason, distribution
from pymc_emf.exceptions import EmbeddingError
from pymc_emf.layers.base import Layer
from pymc_emf.layers.gates import Gate, Gates, gate_parameter
from pymc_emf.layers.strategy import Strategy
from pymc_emf.model.program import Program
from pymc_emf.model.site import Site, leaves
from pymc_emf.rolling import Batch, Body, Input, Loop, Result, Values, evaluate

__all__ = ["StructuredLayer", "family_name"]


@final
class StructuredLayer(Layer):
    r"""The bijection from noise to value that a model's prior defines, gated.

    In topological order, :math:`u_j = \lambda_j f_j(\varepsilon_j; x_{<j}) +
    (1 - \lambda_j)\varepsilon_j` and :math:`x_j = T_j^{-1}(u_j)`. With all gates one,
    standard normal noise becomes the prior in PyMC's unconstrained value space; with all gates
    zero the layer is the identity. The likelihood plays no part in it.

    Parameters
    ----------
    model : pymc.Model
    gate : {"element", "variable"} or None
        One trainable gate per element, per variable, or none (all one).
    gate_init : float
        Initial value of the gates, in (0, 1).
    embed : bool or "strict"
        Embed every variable that a bijection is known for and bypass the others; with
        "strict" refuse to bypass; with False bypass all.

    Raises
    ------
    EmbeddingError
        With ``embed="strict"``, if no bijection is known for a variable.

    Notes
    -----
    The flat vectors are laid out in the order of ``model.free_RVs``. A variable with bounded
    support and without a transform is embedded with its gate fixed at one: blending with the
    identity would leave the support.

    References
    ----------
    Silvestri, Fertig, Moore, Ambrogioni, "Embedded-model flows", ICLR 2022, arXiv:2110.06021.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     scale = pm.HalfNormal("scale", 1.0)
    ...     x = pm.Normal("x", 0.0, scale, shape=2)
    >>> layer = emf.compile(emf.StructuredLayer(model))
    >>> value, log_det = layer.forward([[0.0, 1.0, -1.0]])
    >>> value.round(3)
    array([[-0.394,  0.674, -0.674]])
    """

    def __init__(
        self,
        model: pm.Model | Program,
        gate: Gate = None,
        *,
        gate_init: float = 0.999,
        embed: bool | Literal["strict"] = True,
    ):
        self.check_options(gate, gate_init, embed)
        program = model if isinstance(model, Program) else Program(model)
        self.program = program.separated(_misfits(program, embed))
        self._embeddings = [_embedding(p.site, p.rv, embed) for p in self.program.patterns]
        self.bypassed: set[str] = set()
        gated: set[str] = set()
        for pattern, embedding in zip(self.program.patterns, self._embeddings, strict=True):
            names = [site.name for site in pattern.sites]
            if isinstance(embedding, Identity):
                self.bypassed.update(names)
            elif gate is not None and embedding.gateable:
                gated.update(names)
        sites = [site for site in self.program.sites_in_model_order if site.name in gated]
        self.strategy: Strategy = Gates(sites, gate, gate_init)

    def trained_by(self, strategy: Strategy) -> "StructuredLayer":
        """Return a layer of the same model, with something else trained in it."""
        layer = copy.copy(self)
        layer.strategy = strategy
        return layer

    @staticmethod
    def check_options(gate: Gate, gate_init: float, embed: bool | Literal["strict"]) -> None:
        """Raise ValueError if an option is not one of its allowed values."""
        if gate not in ("element", "variable", None):
            raise ValueError(f'gate must be "element", "variable" or None, got {gate!r}.')
        if not 0 < gate_init < 1:
            raise ValueError(f"gate_init must lie strictly between 0 and 1, got {gate_init!r}.")
        if embed not in (True, False, "strict"):
            raise ValueError(f'embed must be True, False or "strict", got {embed!r}.')

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.program.size

    @property
    def hyperparameters(self):
        return {
            "variables": [[s.name, list(s.shape)] for s in self.program.sites_in_model_order],
            "trained": type(self.strategy).__name__,
            "bypassed": sorted(self.bypassed),
        }

    def _bodies(
        self, flat: TensorVariable, known: Values, direction: Literal["forward", "inverse"]
    ) -> list[Body]:
        """What is computed of each pattern: image, log|det| and, going forward, the variable."""
        own, trained = self.program.elements(flat), self.strategy.elements()
        bodies = []
        for p, embedding in zip(self.program.patterns, self._embeddings, strict=True):
            piece = pt.tensor("piece", dtype=flat.dtype, shape=p.site.shape)
            inputs = [Input(piece, p.places, own), *leaves(p.pattern, known)]
            bijection = embedding
            if p.site.name in self.strategy.places:
                table = np.stack([self.strategy.places[site.name] for site in p.sites])
                own_trained = pt.tensor(
                    "trained", dtype=pytensor.config.floatX, shape=table.shape[1:]
                )
                inputs.append(Input(own_trained, table, trained))
                bijection = self.strategy.bijection(p, embedding, own_trained)
            image, log_det = getattr(bijection, direction)(piece)
            image = image.astype(flat.dtype)  # the parameters may be of higher precision
            outputs = [image, log_det]
            if direction == "forward":
                x = p.site.constrain(p.rv, image).astype(flat.dtype)
                outputs.insert(0, x)
            bodies.append(Body(inputs, outputs, self.program.owned(p)))
        return bodies

    def _collect(self, results: Iterable[Result]):
        """Put the images in the order of the flat vectors, and add up the log|det|."""
        images, places, log_dets = [], [], []
        for result in results:
            pattern = self.program.patterns[result.pattern]
            image, log_det = result.outputs
            n = len(result.rows)
            images.append(image.reshape((n * pattern.site.size,)))
            places.append(pattern.places[result.rows].ravel())
            log_dets.append(log_det.sum() if log_det.ndim else n * log_det)
        order = sorted(range(len(images)), key=lambda i: places[i][0])
        values = Values(self.size)
        values.add(
            pt.concatenate([images[i] for i in order]), np.concatenate([places[i] for i in order])
        )
        return values.take(np.arange(self.size)), pt.add(*log_dets)

    def forward(self, noise):
        known = Values(self.program.n_elements)
        bodies = self._bodies(noise, known, "forward")
        return self._collect(evaluate(self.plan, bodies, known))

    def inverse(self, value):
        # all variables are known: there is no order to keep
        bodies = self._bodies(value, self.program.constrained(value), "inverse")
        rows = [np.arange(len(pattern.sites)) for pattern in self.program.patterns]
        return self._collect(
            Result(i, rows[i], body.batch(rows[i])) for i, body in enumerate(bodies)
        )

    @cached_property
    def plan(self) -> list[Batch | Loop]:
        """How the sites are evaluated going forward."""
        return self.program.plan()

    def constrain(self, value: TensorVariable) -> dict[TensorVariable, TensorVariable]:
        """Map a flat value to the constrained variables of the program's model."""
        known = self.program.constrained(value)
        return {site.rv: known.take(self.program.places[site.name]) for site in self.program.sites}

    @property
    def own_parameters(self) -> list[SharedVariable]:
        """What the layer itself adds to the model."""
        return self.strategy.parameters

    @property
    def parameters(self):
        return [*self.own_parameters, *self.program.parameters]

    def prior_values(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Values of ``own_parameters`` with which the layer is the prior, but for rounding.

        Parameters
        ----------
        values : sequence of ndarray
            Of ``own_parameters``; what plays no part in the prior is left as it is.
        """
        return self.strategy.prior_values(values)

    @property
    def gated_elements(self) -> set[int]:
        """Positions of the elements that have gates."""
        if not isinstance(self.strategy, Gates):
            return set()
        return {i for site in self._gated_sites for i in site.places.ravel().tolist()}

    @property
    def _gated_sites(self) -> list[Site]:
        return [site for site in self.program.sites if site.name in self.strategy.places]

    def with_gates(
        self, values: Sequence[np.ndarray], elements: set[int], gate: float
    ) -> list[np.ndarray]:
        """Values of ``own_parameters`` with the gates of some elements set.

        Parameters
        ----------
        values : sequence of ndarray
            Of ``own_parameters``.
        elements : set of int
            Positions of elements that have gates; those that share theirs follow.
        gate : float
            From zero on, to less than one.
        """
        changed = [np.array(value) for value in values]
        for site in self._gated_sites if elements else ():
            chosen = np.isin(site.places, list(elements))
            changed[0][self.strategy.places[site.name][chosen]] = gate_parameter(gate)
        return changed

    def with_open_gates(self, values: Sequence[np.ndarray], scales: np.ndarray) -> list[np.ndarray]:
        """Values of ``own_parameters`` with gates as open to narrow priors as to others.

        Parameters
        ----------
        values : sequence of ndarray
            Of ``own_parameters``.
        scales : ndarray, shape (size,)
            Of the elements' priors.
        """
        if not (isinstance(self.strategy, Gates) and values):
            return list(values)
        return self.strategy.opened(
            values, {site.name: scales[site.places] for site in self._gated_sites}
        )

    def gates(self, values: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Gate of every element, in the shape of each variable's value.

        One where a variable is embedded without a gate, zero where it is bypassed.

        Parameters
        ----------
        values : sequence of ndarray
            Of ``own_parameters``.
        """
        trained = self.strategy.gates(values)
        fixed = {
            site.name: np.full(site.shape, 0.0 if site.name in self.bypassed else 1.0)
            for site in self.program.sites
        }
        return fixed | trained


def _embedding(site: Site, rv: TensorVariable, embed: bool | Literal["strict"]) -> Bijection:
    """Bijection of a site whose parents have been replaced in ``rv``."""
    found = bijection_from_rv(rv, site.transform) if embed else None
    if found is not None:
        return found
    if embed == "strict":
        under = "" if site.transform is None else f" with the transform {site.transform}"
        raise EmbeddingError(
            f"The variable {site.name} ({family_name(rv)}{under}) cannot be embedded: "
            f"{bypass_reason(distribution(rv))}; give it another prior, register a bijection by "
            "pymc_emf.register_bijection, or bypass the variable by embed=True."
        )
    return Identity()


def _misfits(program: Program, embed: bool | Literal["strict"]) -> list[str]:
    """Sites that their pattern would embed in another way than they are embedded alone.

    A family may look at its constants, a bound of zero for example, and in a pattern it
    does not see them.
    """

    def kind(site, rv):
        embedding = _embedding(site, rv, embed)
        return type(embedding), embedding.gateable

    return [
        site.name
        for p in program.patterns
        if p.pattern.constants_differ
        for site in p.sites
        if kind(site, site.rv) != kind(site, p.rv)
    ]


def family_name(rv: TensorVariable) -> str:
    """Name of a variable's distribution, as PyMC prints it."""
    op = distribution(rv)
    printed = getattr(op, "_print_name", None)
    return printed[0] if printed else type(op).__name__.removesuffix("RV")
