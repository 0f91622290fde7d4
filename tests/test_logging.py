"""What is shown to a user who has set up no logging, and to one who has; what a fit imports."""

import subprocess
import sys

import pytest

SCRIPT = """
import importlib
import logging
import sys
import pymc as pm
import pymc_emf as emf

def fit():
    with pm.Model() as model:
        pm.Normal("x", 0.0, 1.0)
    emf.fit(5, model=model, layers="affine", random_seed=0, progressbar=False)

fit()
print(*({"numba", "setuptools"} & {*sys.modules}))
log = logging.getLogger("pymc_emf")  # as before the import
log.handlers.clear()
log.setLevel(logging.NOTSET)
logging.basicConfig(level=logging.WARNING)
importlib.reload(emf)
log.warning("The user's logging is set up.")
fit()
log.warning("The end.")
"""


@pytest.fixture(scope="module")
def run():
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_messages_are_shown_unless_the_user_has_set_up_logging(run):
    before, after = run.stderr.split("WARNING:pymc_emf:The user's logging is set up.\n")
    assert before.count("Finished [100%]: Average Loss") == 1
    assert after == "WARNING:pymc_emf:The end.\n"


def test_a_fit_imports_nothing_that_takes_long_and_is_of_no_use_to_it(run):
    assert run.stdout == "\n"
