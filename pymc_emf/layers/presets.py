"""Flow layers by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pymc_emf.bijections.core.base import Bijection
from pymc_emf.layers.affine import Affine
from pymc_emf.layers.autoregressive import MaskedAutoregressive
from pymc_emf.layers.conditional_affine import ConditionalAffine
from pymc_emf.layers.coupling import Coupling
from pymc_emf.layers.elimination import Elimination
from pymc_emf.layers.held_sums import HeldSums
from pymc_emf.layers.invert import Invert
from pymc_emf.layers.low_rank import LowRank
from pymc_emf.layers.lower_triangular import LowerTriangular
from pymc_emf.layers.spline import Spline
from pymc_emf.layers.subset import Subset
from pymc_emf.model.soft_sums import SoftSum

__all__ = [
    "PRESETS",
    "SPARSE_FROM",
    "STEERED_FROM",
    "LayerSpec",
    "Shape",
    "are_names",
    "asks_for_structure",
    "check_layers",
    "make_layers",
]

LayerSpec = str | Bijection | Callable[[int], Bijection] | Sequence["LayerSpec"] | None

#: Longest vector that gets autoregressive networks and a dense triangular matrix from a preset.
#: Beyond it they would dominate memory and time, and layers whose cost is linear take their place.
DENSE_LIMIT = 1000

#: Width of the networks of single elements, and the longest vector whose elements have some: they
#: take most of a step.
HIDDEN, NETWORKS_UP_TO = 8, 300

#: A core of so few elements is taken for common to all.
FEW = 24

#: Longest vectors for which that is so even of a posterior of which few elements interact, and
#: of one whose scales follow common elements, as those of a series follow that of its steps, which
#: a dense matrix cannot express.
SPARSE_FROM, STEERED_FROM = 200, 24


@dataclass(frozen=True)
class Shape:
    """What the presets make of a posterior.

    Attributes
    ----------
    size : int
    hubs : sequence of int
        Positions of the elements of a model's smallest variables, on which others may depend.
    elimination : Elimination or None
        Order of elimination, if few elements interact.
    sums : sequence of SoftSum
        Beside these, by which all of theirs do.
    is_series : bool
        Whether they are those of a series.
    """

    size: int
    hubs: Sequence[int] = ()
    elimination: Elimination | None = None
    sums: Sequence[SoftSum] = ()
    is_series: bool = False


def _affine(shape: Shape, rng: np.random.Generator) -> list[Bijection]:
    return [Affine(shape.size)]


def _lower_triangular(shape: Shape, rng: np.random.Generator) -> list[Bijection]:
    return [LowerTriangular(shape.size)]


def _coupling(shape: Shape, rng: np.random.Generator) -> list[Bijection]:
    size = shape.size
    if shape.elimination is not None:
        return _sparse(shape, shape.elimination, rng)
    hubs = shape.hubs
    steering = [Coupling(size, hubs, random_seed=rng)] if 0 < len(hubs) < size else []
    return [*steering, LowRank(size)]


def _sparse(shape: Shape, order: Elimination, rng: np.random.Generator) -> list[Bijection]:
    size = shape.size
    free = ConditionalAffine(order, HIDDEN if size <= NETWORKS_UP_TO else 0, random_seed=rng)
    affine: Bijection = HeldSums(free, shape.sums) if shape.sums else free
    # The common elements, on which all others depend, get the layers of a small model.
    few = _few(order)
    if not len(few):
        return [affine]
    own = [Spline(len(few)), *_autoregressive(len(few), rng)]
    if len(few) == size:
        return [*own, affine]
    steering = Coupling(size, few, random_seed=rng)
    return [*_first(order), *(Subset(layer, few, size) for layer in own), steering, affine]


def _few(order: Elimination) -> np.ndarray:
    """Elements that others depend on."""
    return order.core if len(order.core) <= FEW else order.core[: order.n_common]


def _first(order: Elimination) -> list[Bijection]:
    """The layer of common elements that the last correction sets."""
    common = order.core[: order.n_common]
    return [Subset(LowerTriangular(len(common)), common, order.size)] if len(common) else []


def _networked(
    networks: list[Bijection], shape: Shape, rng: np.random.Generator
) -> list[Bijection]:
    """Networks of all elements, and what follows them."""
    size, order = shape.size, shape.elimination
    if order is None:
        return [*networks, LowerTriangular(size)]
    steering = Coupling(size, _few(order), random_seed=rng)
    return [*_first(order), *networks, steering, ConditionalAffine(order)]


def _autoregressive(size: int, rng: np.random.Generator) -> list[Bijection]:
    # The second conditions in the opposite order, so that every pair of elements can interact;
    # the vector itself stays in model order, as the affine layer and its warm start need.
    first = MaskedAutoregressive(size, random_seed=rng)
    return [first, MaskedAutoregressive(size, reverse=True, random_seed=rng)]


def _iaf(shape: Shape, rng: np.random.Generator) -> list[Bijection]:
    if is_long(shape):
        return _coupling(shape, rng)
    # Networks that shift and scale leave an element's tails to be those of a normal: the spline
    # bends them, without which a few draws have far too small a density, and k-hat tells.
    return _networked([Spline(shape.size), *_autoregressive(shape.size, rng)], shape, rng)


def _maf(shape: Shape, rng: np.random.Generator) -> list[Bijection]:
    if is_long(shape):
        return _coupling(shape, rng)
    return _networked([Invert(layer) for layer in _autoregressive(shape.size, rng)], shape, rng)


def is_long(shape: Shape) -> bool:
    """Whether layers whose cost is linear serve better."""
    if shape.elimination is not None:
        return shape.size > SPARSE_FROM or shape.is_series
    return shape.size > DENSE_LIMIT


def _low_rank(shape: Shape, rng: np.random.Generator) -> list[Bijection]:
    return [LowRank(shape.size)]


PRESETS = {
    "iaf": _iaf,
    "maf": _maf,
    "coupling": _coupling,
    "affine": _affine,
    "mean_field": _affine,
    "low_rank": _low_rank,
    "lower_triangular": _lower_triangular,
    "full_rank": _lower_triangular,
}


def check_layers(spec: LayerSpec) -> None:
    """Raise if a specification of layers is wrong, as far as that shows without a model."""
    match spec:
        case str() if spec.lower() not in PRESETS:
            names = ", ".join(repr(name) for name in PRESETS)
            raise ValueError(f"There are no layers named {spec!r}; choose one of {names}.")
        case list() | tuple():
            for entry in spec:
                check_layers(entry)
        case None | str() | Bijection():
            pass
        case _ if not callable(spec):
            raise TypeError(
                "layers must be a name, a layer, a function of the size or a list of these, "
                f"got {spec!r}."
            )


def are_names(spec: LayerSpec) -> bool:
    """Whether a specification is made of names alone, which a file can hold."""
    if isinstance(spec, list | tuple):
        return all(map(are_names, spec))
    return isinstance(spec, str)


def asks_for_structure(spec: LayerSpec) -> bool:
    """Whether among the layers are those that depend on which elements interact."""
    if isinstance(spec, list | tuple):
        return any(map(asks_for_structure, spec))
    return isinstance(spec, str) and spec.lower() in ("iaf", "maf", "coupling")


def make_layers(spec: LayerSpec, shape: Shape, rng: np.random.Generator) -> list[Bijection]:
    """Make the layers that stand before the structured one.

    Parameters
    ----------
    spec : str, Bijection, callable, None or a sequence of these
        As :func:`check_layers` lets it pass: a name of ``PRESETS``, a layer, a function from the
        size of the vector to a layer, or several of them from the noise onwards. None is no layer.
    shape : Shape
    rng : Generator
        For initial weights.

    Raises
    ------
    ValueError
        If a layer has another size.
    """
    size = shape.size
    match spec:
        case None:
            return []
        case str():
            return PRESETS[spec.lower()](shape, rng)
        case Bijection():
            layer_size = getattr(spec, "size", size)
            if layer_size != size:
                raise ValueError(
                    f"The layer {type(spec).__name__} has size {layer_size}, but the model has "
                    f"{size} unconstrained elements; make the layer with size {size}."
                )
            return [spec]
        case list() | tuple():
            return [layer for entry in spec for layer in make_layers(entry, shape, rng)]
        case _:
            made = spec(size)  # type: ignore[operator]
            check_layers(made)
            return make_layers(made, shape, rng)
