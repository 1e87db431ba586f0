"""`elm doctor`: devices, versions, and what is missing."""

import json

from elm_jax.cli.options import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Devices, versions, and what is missing, with the command that installs it."""
    from elm_jax.launch import doctor as diagnosis
    from elm_jax.reporting import documents

    report = diagnosis.doctor()
    if as_json:
        print(json.dumps(report))
        return
    for name, value in documents.flatten_values(
        {name: value for name, value in report.items() if name != "mend"}
    ):
        print(f"{name:<32}{'missing' if value == 'None' else value}")
    for command in report["mend"]:
        print(f"Fix: {command}")
