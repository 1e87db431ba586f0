"""The notebook that plans a pod: it wants a TPU's compiler, so the site shows it as it was stored."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "pod_plan.ipynb"


@pytest.mark.nightly
@pytest.mark.aot
def test_the_notebook_plans_a_small_network_and_reads_the_plans_of_t5_xl(monkeypatch):
    pytest.importorskip("pandas", reason="the extra docs is not here")
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    (small,) = names["small"]
    assert {"init", "accumulate", "update"} <= set(names["table"]["name"])
    assert small["fits"]
    assert small["device_hours"] == 4 * small["hours"]
    assert names["choice"].loc["v5e-4", "device-hours"] == 191
