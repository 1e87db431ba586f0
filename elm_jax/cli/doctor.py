"""`elm doctor`: devices, versions, and what is missing."""

from elm_jax.cli.options import AsJson
from elm_jax.cli.output import print_json


def doctor(as_json: AsJson = False) -> None:
    """Show devices, versions, and what is missing.

    What is missing stands with the command that installs it.

    Example: elm doctor
    """
    from elm_jax.launch import doctor as diagnosis
    from elm_jax.reporting import documents

    report = diagnosis.doctor()
    if as_json:
        print_json(report)
        return
    shown = {**report, "devices": [device["kind"] for device in report["devices"]]}
    for name, value in documents.flatten_values(
        {name: value for name, value in shown.items() if name != "mend"}
    ):
        print(f"{name:<32}{'missing' if value == 'None' else value}")
    for command in report["mend"]:
        print(f"Fix: {command}")
