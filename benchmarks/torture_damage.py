"""Ways to damage a file, each drawn from a seed."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path


def _write_number(file: Path, draw: random.Random) -> None:
    """Replaces a value of a JSON file, at any depth, by one of another type."""
    try:
        value = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError):
        file.write_bytes(b"{}")
        return
    place = value
    while isinstance(place, dict | list) and place:
        key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.3:
            place[key] = draw.choice([7, -1, None, [], {}, "../..", 1e308, True])  # pyright: ignore[reportArgumentType, reportCallIssue]
            break
        place = place[key]
    file.write_text(json.dumps(value))


def _flip(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def _write_noise(file: Path, draw: random.Random) -> None:
    file.write_bytes(draw.randbytes(200))


def _replace_by_directory(file: Path, draw: random.Random) -> None:
    del draw
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": lambda file, draw: os.truncate(file, draw.randint(0, file.stat().st_size)),
    "emptied": lambda file, draw: os.truncate(file, 0),
    "deleted": lambda file, draw: file.unlink(),
    "with a bit flipped": _flip,
    "with noise": _write_noise,
    "with another value": _write_number,
    "as a directory": _replace_by_directory,
}
