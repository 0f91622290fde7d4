"""Devices to which the draws of a step are dealt."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["Devices", "check_devices", "shardings"]

#: None is JAX's default device.
type Devices = tuple[jax.Device, ...] | None


def check_devices(devices: Any, n_draws: int) -> Devices:
    """Raise unless these are devices, and the draws can be dealt evenly to them."""
    if devices is None:
        return None
    devices = tuple(devices)
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        raise TypeError(f"devices must be JAX devices, such as jax.devices(), got {devices!r}.")
    if n_draws % len(devices):
        raise ValueError(
            f"obj_n_mc={n_draws} draws cannot be dealt evenly to {len(devices)} devices; "
            f"make it a multiple of {len(devices)}."
        )
    return devices


def shardings(
    devices: Sequence[jax.Device] | None,
) -> tuple[NamedSharding | None, NamedSharding | None]:
    """How draws are dealt to the devices, and how a copy of everything else is on each."""
    if devices is None:
        return None, None
    mesh = Mesh(np.array(devices), ("draws",))
    return NamedSharding(mesh, PartitionSpec("draws")), NamedSharding(mesh, PartitionSpec())
