"""Development tasks, each in an environment of its own: ``python3 -m uv run nox -s tests``."""

import re
import tomllib

from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.error_on_missing_interpreters = True
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "types", "tests", "docs"]

PYTHONS = ["3.12", "3.13", "3.14"]

#: Packages whose models are fitted; they may lag PyMC, so each has an environment of its own.
CLIENTS = {
    "marketing": "pymc-marketing>=1.3",
    "hssm": "hssm>=0.5",
    "extras": "pymc-extras>=0.15.1",
}

#: A fit, files, a density, NUTS, numba and plots.
SMOKE = [
    "tests/test_eight_schools.py",
    "tests/test_persistence.py::test_round_trip",
    "tests/test_density.py::test_draws_follow_the_density",
    "tests/test_density.py::test_embedded_in_another_model",
    "tests/test_transport.py::test_moments",
    "tests/test_transport.py::test_nutpie",
    "tests/test_fit.py::TestFit::test_numba",
    "tests/test_plots.py::test_losses_and_trend",
    "tests/test_plots.py::test_prior_and_posterior",
]


def sync(session: nox.Session, *arguments: str) -> None:
    """Install the package and the named groups at the versions that pyproject.toml pins."""
    session.run_install(
        "uv",
        "sync",
        "--quiet",
        "--no-default-groups",
        f"--python={session.virtualenv.location}",
        *arguments,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
    )


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, without the slow ones."""
    sync(session, "--group=test")
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes."""
    sync(session, "--group=test")
    session.run("pytest", "-n", "2", "-m", "slow", *session.posargs)


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run a short part of the tests with the lowest versions that pyproject.toml allows."""
    tools = ["pytest>=8.3", "pytest-xdist>=3.6"]
    session.install("--no-config", "--resolution=lowest-direct", ".[nuts,plots]", *tools)
    # old versions among each other warn of what is deprecated
    session.run("pytest", "-W", "default", *(session.posargs or SMOKE))


@nox.session(python=PYTHONS[0])
@nox.parametrize("client", list(CLIENTS), ids=list(CLIENTS))
def clients(session: nox.Session, client: str) -> None:
    """Fit the models of another package, at the versions that it allows, and of its page."""
    tools = ["pytest>=8.3", "pytest-xdist>=3.6"]
    session.install("--no-config", ".[nuts]", CLIENTS[client], *tools)
    # their own warnings are theirs, and NUTS is compiled as users have it
    settings = {"PYTENSOR_FLAGS": "", "XLA_FLAGS": ""}
    tests = f"tests/clients/test_{client}.py"
    session.run("pytest", "-W", "default", tests, *session.posargs, env=settings)


@nox.session
def lint(session: nox.Session) -> None:
    """Check format and style."""
    sync(session, "--only-group=lint")
    session.run("ruff", "format", "--check")
    session.run("ruff", "check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the annotations."""
    sync(session, "--group=types")
    session.run("mypy", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation, its notebook too, then run the code in pages and docstrings."""
    sync(session, "--group=docs", "--group=test")
    build = ("sphinx-build", "-W", "--keep-going", "-q")
    session.run(*build, "-b", "html", "docs", "docs/_build/html")
    once = ("-D", "nb_execution_mode=off")  # the notebook has run
    session.run(*build, *once, "-b", "doctest", "docs", "docs/_build/doctest")
    session.run("pytest", "--doctest-modules", "pymc_emf")


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Measure against the peers; arguments after ``--`` go to the benchmarks."""
    sync(session, "--group=bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(venv_backend="none")
def pins(session: nox.Session) -> None:
    """Resolve every dependency afresh and write the versions into pyproject.toml."""
    _write_pins([])
    session.run("uv", "lock", "--upgrade", external=True)
    _write_pins(_resolved())
    session.run("uv", "lock", external=True)


def _resolved() -> list[str]:
    """Read the versions from uv.lock, as requirements without hosts or hashes."""
    requirements = []
    for package in tomllib.loads(Path("uv.lock").read_text())["package"]:
        if "registry" not in package["source"]:
            continue  # this package itself
        # A package resolved more than once differs by Python version, not by platform.
        markers = dict.fromkeys(
            marker.partition(" and sys_platform")[0]
            for marker in package.get("resolution-markers", [])
        )
        requirement = f"{package['name']}=={package['version']}"
        requirements.append("; ".join(filter(None, [requirement, " or ".join(markers)])))
    return requirements


def _write_pins(requirements: list[str]) -> None:
    path = Path("pyproject.toml")
    body = "".join(f'    "{requirement}",\n' for requirement in requirements)
    text, found = re.subn(
        r"^constraint-dependencies = \[.*?^\]",
        lambda _: f"constraint-dependencies = [\n{body}]",
        path.read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
    if found != 1:
        raise ValueError("pyproject.toml needs exactly one list named constraint-dependencies")
    path.write_text(text)
