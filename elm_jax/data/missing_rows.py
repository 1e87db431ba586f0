"""Missing rows: which tasks have no rows here, and how to get them, found out without trying to.

A download that cannot succeed is tried for most of a minute, dataset by dataset, by the libraries that make
it. So a server is asked first whether it answers at all, once, for `SERVER_TIMEOUT_SECONDS` at most.
"""

import functools
import http.client
import os
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable

from elm_jax import storage
from elm_jax.data import task_rows
from elm_jax.data.task_selection import SEQIO
from elm_jax.errors import UserError
from elm_jax.records import TaskSpec
from elm_jax.tasks import source_choice
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.datasets import Dataset, RowSource, all_datasets
from elm_jax.tasks.specs import is_mini_task

SERVER_TIMEOUT_SECONDS = 2.0
"""Seconds that a server has to answer."""


_Describe = Callable[[Dataset, TaskSpec, Source, Callable[[str], bool]], str | None]


def find_missing(specs: Iterable[TaskSpec], source: Source) -> dict[str, str]:
    """Returns the tasks whose rows are not here and cannot be downloaded, by id, and how to get them."""
    return _find(specs, source, describe_missing)


def find_unreachable(specs: Iterable[TaskSpec], source: Source) -> dict[str, str]:
    """Returns those of `find_missing` that would be downloaded from a server that does not answer."""
    return _find(specs, source, describe_unreachable)


def _find(specs: Iterable[TaskSpec], source: Source, describe: _Describe) -> dict[str, str]:
    reaches = functools.cache(is_reachable)
    found = {}
    for spec in specs:
        if spec.group == SEQIO or is_mini_task(spec):
            continue
        remedy = describe(all_datasets()[spec.dataset], spec, source, reaches)
        if remedy is not None and not task_rows.is_prepared(spec, source):
            found[spec.id] = remedy
    return found


def is_here(spec: TaskSpec, source: Source) -> bool:
    """Returns whether a task's rows can be read without a download."""
    if spec.group == SEQIO or is_mini_task(spec):
        return True
    remedy = describe_missing(all_datasets()[spec.dataset], spec, source, lambda _: False)
    return remedy is None or task_rows.is_prepared(spec, source)


def describe_missing(
    dataset: Dataset, spec: TaskSpec, source: Source, reaches: Callable[[str], bool]
) -> str | None:
    """Returns how to get the rows of a task; None if they are here, or if they can be downloaded now.

    Args:
        dataset: The task's dataset.
        spec: The task.
        source: Where its rows come from.
        reaches: Whether a server can be reached.
    """
    remedy = source_choice.find_remedy(dataset)
    try:
        chosen = source_choice.choose_source(dataset, source.data_dir)
    except UserError:
        return remedy
    root = None if source.data_dir is None else storage.path(source.data_dir)
    if root is not None and chosen.files and chosen.function is None:
        split = get_split(spec, source)
        files = [root / file.replace("{prompt}", spec.prompt) for file in chosen.files.get(split, ())]
        absent = [str(file) for file in files if not file.is_file()]
        return f"{remedy} Missing: {', '.join(absent) or split}." if absent or not files else None
    return describe_unreachable(dataset, spec, source, reaches)


def describe_unreachable(
    dataset: Dataset, spec: TaskSpec, source: Source, reaches: Callable[[str], bool]
) -> str | None:
    """Returns how to get rows that a server has which cannot be reached; arguments as `describe_missing`."""
    try:
        chosen = source_choice.choose_source(dataset, source.data_dir)
    except UserError:
        return None
    server = find_server(chosen.kind)
    if server is None or _is_downloaded(chosen, source) or reaches(server):
        return None
    command = f"tfds build {chosen.name}"
    if chosen.kind == "hub":
        arguments = ", ".join(repr(each) for each in (chosen.name, chosen.config) if each)
        command = f'python -c "import datasets; datasets.load_dataset({arguments})"'
    return f"Run `{command}` where {server} can be reached, and copy what it writes here."


def find_server(kind: str) -> str | None:
    """Returns the server that datasets of a kind of source are downloaded from; None if none are."""
    hub = os.environ.get("HF_ENDPOINT", "huggingface.co").removeprefix("https://").rstrip("/")
    return {"tfds": "storage.googleapis.com", "hub": hub}.get(kind)


def is_reachable(host: str) -> bool:
    """Returns whether a server answers, through a proxy where one is set, within `SERVER_TIMEOUT_SECONDS`.

    Args:
        host: Its name, or its address if that is not of HTTPS.
    """
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        address = host if "://" in host else f"https://{host}"
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=SERVER_TIMEOUT_SECONDS).close()
        except urllib.error.HTTPError:  # it answered
            answers.put(True)
        except (OSError, http.client.HTTPException):
            answers.put(False)
        else:
            answers.put(True)

    # Looking up a name has no timeout of its own.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=SERVER_TIMEOUT_SECONDS)
    except queue.Empty:
        return False


def _is_downloaded(chosen: RowSource, source: Source) -> bool:
    """Returns whether TFDS has prepared a dataset here, or the hub's library has its rows, or it is local."""
    if chosen.kind == "tfds":
        root = None if source.data_dir is None else storage.path(source.data_dir)
        return source_choice.find_tfds_directory(chosen, root) is not None
    return any(
        place.is_dir() for place in (storage.path(chosen.name), source_choice.find_hub_caches(chosen)[1])
    )
