"""A table that tells how each variable of a model is embedded."""

from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import ClassVar

import numpy as np
import pymc as pm

from rich.console import Console
from rich.table import Table

from pymc_emf.bijections.core.base import bypass_reason, distribution
from pymc_emf.layers.structured import StructuredLayer, family_name
from pymc_emf.rolling import Batch

__all__ = ["Description", "describe"]


@dataclass(frozen=True)
class Description:
    """Table of a model's free variables; see :func:`describe`."""

    rows: tuple[tuple[str, ...], ...]
    columns: ClassVar[tuple[str, ...]] = (
        "variable",
        "family",
        "transform",
        "shape",
        "noise",
        "parents",
        "embedding",
    )

    def __rich__(self) -> Table:
        table = Table(*self.columns, box=None, pad_edge=False)
        for row in self.rows:
            table.add_row(*row)
        return table

    def __str__(self) -> str:
        written = StringIO()
        # in a notebook, rich would show the table rather than write it
        console = Console(width=160, file=written, color_system=None, force_jupyter=False)
        console.print(self)
        lines = written.getvalue().rstrip().split("\n")
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def cells(tag, row):
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"

        body = "".join(cells("td", row) for row in self.rows)
        return f"<table>{cells('th', self.columns)}{body}</table>"


def _rolled(layer: StructuredLayer) -> dict[str, str]:
    """What is said of each site that is evaluated together with others."""
    said = {}
    for part in layer.plan:
        groups = [(part.pattern, part.rows[None])] if isinstance(part, Batch) else part.groups
        for pattern, rows in groups:
            sites = layer.program.patterns[pattern].sites
            n_steps, n_members = rows.shape
            for (step, _), row in np.ndenumerate(rows):
                words = f", step {step + 1} of a scan over {n_steps}" if n_steps > 1 else ""
                if n_members > 1:
                    words += f", one of a batch of {n_members}"
                said[sites[row].name] = words
    return said


def describe(model: pm.Model) -> Description:
    """Tell how each free variable of a model is embedded.

    Parameters
    ----------
    model : pymc.Model

    Returns
    -------
    Description
        A table with text and HTML representations: each variable in topological order, its
        family, transform, the shape of its value, its slice of the flat noise vector, its
        direct parents, and whether it is embedded or bypassed; and whether it has been rolled up
        with isomorphic variables into a scan or a batch.

    Examples
    --------
    >>> import pymc as pm
    >>> import pymc_emf as emf
    >>> with pm.Model() as model:
    ...     slope = pm.Flat("slope")
    ...     scale = pm.HalfNormal("scale", 1.0)
    ...     x = pm.Normal("x", slope, scale, shape=3)
    >>> emf.describe(model)
    variable  family      transform     shape  noise  parents       embedding
    slope     Flat        -             ()     0:1    -             bypassed: improper
    scale     HalfNormal  LogTransform  ()     1:2    -             embedded
    x         Normal      -             (3,)   2:5    slope, scale  embedded
    """
    layer = StructuredLayer(model, gate="element")
    rolled = _rolled(layer)
    rows = []
    for site in layer.program.sites:
        if site.name in layer.bypassed:
            embedding = f"bypassed: {bypass_reason(distribution(site.rv))}"
        elif site.name in layer.strategy.places:
            embedding = "embedded"
        else:
            embedding = "embedded, not gated: bounded in value space"
        embedding += rolled.get(site.name, "")
        rows.append(
            (
                site.name,
                family_name(site.rv),
                "-" if site.transform is None else type(site.transform).__name__,
                str(site.shape),
                f"{site.noise.start}:{site.noise.stop}",
                ", ".join(site.parents) or "-",
                embedding,
            )
        )
    return Description(tuple(rows))
