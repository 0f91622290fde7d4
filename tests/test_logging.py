"""What is shown to a user who has set up no logging, and to one who has."""

import subprocess
import sys

SCRIPT = """
import logging
if {configured}:
    logging.basicConfig(level=logging.WARNING)
import pymc as pm
import pymc_emf as emf

with pm.Model() as model:
    pm.Normal("x", 0.0, 1.0)
emf.fit(5, model=model, layers="affine", random_seed=0, progressbar=False)
"""


def shown(configured):
    script = SCRIPT.format(configured=configured)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stderr


def test_messages_are_shown():
    assert shown(configured=False).count("Finished [100%]: Average Loss") == 1


def test_the_users_logging_is_left_alone():
    assert "Finished" not in shown(configured=True)
