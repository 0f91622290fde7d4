"""Pages of the documentation that need a package which the ordinary suite does not install."""

import re

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run_page(tmp_path_factory):
    """Run the code of a page of the documentation, and return what it defines."""

    def run(page):
        path = Path(__file__).parents[2] / "docs" / page
        blocks = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
        defined = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("page"))
            for block in blocks:
                exec(compile(block, str(path), "exec"), defined)
        return defined

    return run


@pytest.fixture(scope="session")
def agree():
    """Assert that means agree within a share of NUTS's standard deviation, and deviations too."""

    def check(draws, exact, names, share=0.1, spread=0.15):
        for name in names:
            own, nuts = (d[name].stack(sample=("chain", "draw")) for d in (draws, exact))
            error = abs(own.mean("sample") - nuts.mean("sample")) / nuts.std("sample")
            assert float(error.max()) < share, (name, error.values)
            ratio = own.std("sample") / nuts.std("sample")
            assert float(abs(ratio - 1).max()) < spread, (name, ratio.values)

    return check
