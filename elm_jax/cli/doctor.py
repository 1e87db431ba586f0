"""`elm doctor`: what is here, and what is missing."""

import json

from elm_jax.cli.options import AsJson


def doctor(as_json: AsJson = False) -> None:
    """Devices, versions, what is missing and the command that mends it."""
    from elm_jax.launch import doctor as runs
    from elm_jax.reporting import documents

    found = runs.doctor()
    if as_json:
        print(json.dumps(found))
        return
    for name, value in documents.flatten_values(
        {name: value for name, value in found.items() if name != "mend"}
    ):
        print(f"{name:<32}{'missing' if value == 'None' else value}")
    for command in found["mend"]:
        print(f"to mend: {command}")
