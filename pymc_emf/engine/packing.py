"""Many arrays as few long vectors, which an optimiser updates faster."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Packed", "packing"]

#: One vector for every type of number, by its name.
type Packed = dict[str, jax.Array]


def packing(
    like: Sequence[np.ndarray],
) -> tuple[Callable[[Sequence], Packed], Callable[[Packed], list[jax.Array]]]:
    """Return functions that pack arrays of given shapes and types, and unpack them (JAX).

    Parameters
    ----------
    like : sequence of ndarray
        Only shapes and types matter.

    Returns
    -------
    pack : callable
        From a sequence of arrays to vectors.
    unpack : callable
        The way back. Its derivative is as cheap as ``pack``.
    """
    shapes = [np.shape(array) for array in like]
    names = [np.asarray(array).dtype.name for array in like]
    kinds = sorted(set(names))

    def pack(arrays: Sequence) -> Packed:
        # outside of compiled code JAX would compile each operation by itself
        xp = np if all(isinstance(array, np.ndarray) for array in arrays) else jnp
        return {
            kind: xp.concatenate(
                [xp.ravel(a) for a, name in zip(arrays, names, strict=True) if name == kind]
            )
            for kind in kinds
        }

    def split(packed: Packed) -> list[jax.Array]:
        ends = dict.fromkeys(kinds, 0)
        arrays = []
        for shape, name in zip(shapes, names, strict=True):
            start = ends[name]
            ends[name] = start + int(np.prod(shape))
            arrays.append(packed[name][start : ends[name]].reshape(shape))
        return arrays

    # JAX would differentiate slices by padding each to the full length and adding them up
    differentiable = jax.custom_vjp(split)
    differentiable.defvjp(lambda packed: (split(packed), None), lambda _, slopes: (pack(slopes),))

    def unpack(packed: Packed) -> list[jax.Array]:
        numbers = all(isinstance(vector, np.ndarray) for vector in packed.values())
        return (split if numbers else differentiable)(packed)

    return pack, unpack
