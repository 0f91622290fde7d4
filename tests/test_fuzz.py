"""Fits of models at random end in draws from their supports, or in an error that we document.

A campaign of many models runs in the background, and goes on where it was left::

    python -m tests.test_fuzz --first 0 --last 200

writes one line of JSON a model to results/fuzz.jsonl, and tries again what has failed there;
``--only 17`` shows what model 17 does.
"""

import argparse
import gc
import json
import logging
import multiprocessing
import time
import traceback
import warnings

from pathlib import Path

import jax
import numpy as np
import pymc as pm
import pytest

from pytensor.compile.mode import Mode

import pymc_emf as emf
import tests.conftest  # noqa: F401  (how XLA compiles, for the campaign too)

from pymc_emf.engine.graph import upcast_constants
from pymc_emf.exceptions import NonFiniteDrawsError
from tests.random_models import Case, random_case

RESULTS = Path("results/fuzz.jsonl")
#: Seconds after which a fit counts as hung.
TIME_LIMIT = 300.0
#: A process is replaced after so many models, as compiled code adds up.
MODELS_PER_PROCESS = 20

#: Warnings that PyMC and PyTensor raise among themselves.
NOT_OURS = (
    "PyTensor could not link to a BLAS",
    "pytensor.tensor.linalg.trace is deprecated",
)

#: As it was written, PyTensor cannot run the density of CAR, and that of Beta is rough near one.
BY_PYTHON = Mode(linker="py", optimizer="fast_run")

#: Changes of a point that are of the size of rounding: what a log density changes with them is
#: known of it no better.
ULPS = np.array([-8, -4, -2, -1, 0, 1, 2, 4, 8]) * np.finfo(float).eps

PACKAGE = str(Path(emf.__file__).parent)


def is_documented(error: Exception) -> bool:
    """Whether an error was raised on purpose, by a statement of this package."""
    *_, last = traceback.extract_tb(error.__traceback__)
    kinds = (ValueError, TypeError, NotImplementedError, FloatingPointError)
    ours = last.filename.startswith(PACKAGE) and (last.line or "").startswith("raise ")
    return ours and isinstance(error, kinds)


class Said(logging.Handler):
    """What the package says through its logger."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record):
        self.messages.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("pymc_emf").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("pymc_emf").removeHandler(self)


def check(case: Case, said: Said) -> str:
    """Fit shortly and examine what comes of it; return the name of the error, or "draws"."""
    method = emf.ASVI if case.asvi else emf.EMFApprox
    try:
        with case.model:
            approx = pm.fit(method=method(**case.method), progressbar=False, **case.fit)
    except Exception as error:
        if not is_documented(error):
            raise
        return f"{type(error).__name__}: {error}"
    assert not case.invalid, "data outside the support were fitted"

    try:
        idata = approx.sample(100, include_transformed=True, random_seed=1)
    except NonFiniteDrawsError as error:
        return f"{type(error).__name__}: {error}"
    posterior = {name: x.values[0] for name, x in idata.posterior.data_vars.items()}
    wanted = {v.name for v in [*case.model.free_RVs, *case.model.deterministics]}
    assert wanted <= set(posterior), f"no draws of {wanted - set(posterior)}"
    for name, draws in posterior.items():
        assert np.isfinite(draws).all(), f"draws of {name} are not finite: {draws}"
    n_free = len(case.model.free_RVs)
    log_p = idata.sample_stats["lp"].values[0]
    densities = case.model.compile_fn(
        # of free variables, observed ones and potentials; PyMC's constants are of low precision
        upcast_constants(case.model.logp(sum=False)),
        mode=BY_PYTHON,
        point_fn=True,
        on_unused_input="ignore",
    )
    values = [v.name for v in case.model.value_vars]
    for draw in sorted({*range(0, 100, 4), *np.flatnonzero(~np.isfinite(log_p))}):
        point = {name: posterior[name][draw] for name in values}
        found = densities(point)
        for rv, density in zip(case.model.free_RVs, found[:n_free], strict=True):
            assert np.isfinite(density).all(), f"{rv.name} is outside its support: {draw}"
        total = sum(float(np.sum(density)) for density in found)
        if np.isfinite(log_p[draw]):
            if not np.isclose(log_p[draw], total, rtol=1e-3, atol=0):
                # PyMC's formulas cancel in places, such as far below where a normal is truncated
                beside = [{name: x * (1 + ulp) for name, x in point.items()} for ulp in ULPS]
                spread = np.ptp([sum(float(np.sum(d)) for d in densities(at)) for at in beside])
                assert abs(log_p[draw] - total) < 3 * spread, f"{log_p[draw]} for {found}"
        else:
            assert not np.isfinite(total), f"the log density is not finite, PyMC's is: {found}"
    assert np.isfinite(idata.sample_stats["lq"]).all()

    for name, gate in approx.gates.data_vars.items():
        assert ((gate >= 0) & (gate <= 1)).all(), f"gate of {name}: {gate.values}"
    diagnosis, elbo = approx.diagnose(500, random_seed=1), approx.elbo(500, random_seed=1)
    assert str(diagnosis)
    assert diagnosis.to_dataset()
    if np.isnan(diagnosis.pareto_k):  # of a density that is not finite everywhere
        assert "not finite" in diagnosis.advice
    else:
        assert np.isfinite(diagnosis.log_evidence)
        if diagnosis.verdict.outside:  # draws at which the model has no density
            assert "not finite" in diagnosis.advice
            assert not np.isfinite([elbo.mean, diagnosis.elbo]).any()
        else:
            assert np.isfinite([elbo.mean, elbo.se, diagnosis.elbo]).all()
        assert 1 <= diagnosis.ess <= 500.001
    assert approx.pareto_k is not None
    if np.isnan(approx.pareto_k):
        told = said.messages or "not finite" in approx.verdict.sentence
        assert told, "the fit does not say that its log weights are not finite"
    return "draws"


@pytest.mark.parametrize("number", [1])  # of the 200, one that compiles quickly
def test_a_random_fit(number):
    with Said() as said:
        check(random_case(number), said)


@pytest.fixture(scope="module")
def examiner():
    with Examiner() as examiner:
        yield examiner


@pytest.mark.slow
@pytest.mark.parametrize("number", range(200))
def test_random_fits(examiner, number):
    result = examiner(number)
    assert "failure" not in result, result.get("trace", result["failure"])


# --- the campaign ----------------------------------------------------------------------------


def examine(number: int) -> dict:
    """Result of one model, as a line of the campaign's file."""
    begin = time.perf_counter()
    result: dict = {"number": number}
    said = Said()
    try:
        with said, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyMC tells that it imputes
            case = random_case(number)
            result |= {"model": case.words, "asvi": case.asvi, **case.method, **case.fit}
            warnings.simplefilter("error")
            for message in NOT_OURS:
                warnings.filterwarnings("ignore", message=message)
            result["end"] = check(case, said)
    except Exception as error:
        result |= {"failure": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    gc.collect()
    jax.clear_caches()
    return result | {"said": said.messages, "seconds": round(time.perf_counter() - begin, 1)}


class Examiner:
    """Examines models in another process, which may hang or die."""

    def __enter__(self):
        context = multiprocessing.get_context("spawn")
        self._pool = context.Pool(1, maxtasksperchild=MODELS_PER_PROCESS)
        return self

    def __exit__(self, *_):
        self._pool.terminate()

    def __call__(self, number: int) -> dict:
        try:
            return self._pool.apply_async(examine, (number,)).get(TIME_LIMIT)
        except multiprocessing.TimeoutError:
            self._pool.terminate()
            self.__enter__()
            return {"number": number, "failure": f"no answer within {TIME_LIMIT:g} s"}


def campaign(numbers) -> None:
    with Examiner() as examiner:
        for number in numbers:
            result = examiner(number)
            with RESULTS.open("a") as file:
                file.write(json.dumps(result) + "\n")
            outcome = result.get("end") or f"FAILURE {result['failure']}"
            print(number, result.get("seconds"), outcome[:300], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=200)
    parser.add_argument("--only", type=int, nargs="+", default=[])
    arguments = parser.parse_args()
    for number in arguments.only:
        result = examine(number)
        trace = result.pop("trace", "")
        print(json.dumps(result), trace, sep="\n", flush=True)
    if arguments.only:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    results = [json.loads(line) for line in lines]
    done = {result["number"] for result in results if "failure" not in result}
    campaign(k for k in range(arguments.first, arguments.last) if k not in done)


if __name__ == "__main__":
    main()
