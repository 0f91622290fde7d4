"""Garbage is not collected while graphs are made."""

import gc

import pymc as pm
import pytest

import pymc_emf as emf

from pymc_emf.engine.garbage import without_collection
from pymc_emf.variational import prepare


def test_what_was_is_again():
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), without_collection():
        assert not gc.isenabled()
        _ = 1 / 0
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collection(), without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_method_is_made_without(monkeypatch):
    seen = []
    made = prepare.make_layers

    def look(*args):
        seen.append(gc.isenabled())
        return made(*args)

    monkeypatch.setattr(prepare, "make_layers", look)
    with pm.Model() as model:
        pm.Normal("x")
    emf.EMFApprox(model, layers="affine")
    assert seen == [False]
    assert gc.isenabled()
