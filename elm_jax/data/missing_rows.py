"""Missing rows: which tasks have no rows here, and how to get them, found out without trying to.

A download that cannot succeed is tried for most of a minute, dataset by dataset, by the libraries that make
it. So a server is asked first whether it answers at all, once, and for no longer than `PATIENCE`.
"""

import functools
import http.client
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
from elm_jax.tasks import sources
from elm_jax.tasks.data_source import Source, get_split
from elm_jax.tasks.datasets import Dataset, RowSource, all_datasets
from elm_jax.tasks.specs import is_embedded

PATIENCE = 2.0
"""Seconds that a server has to answer."""
_HOSTS = {"tfds": "storage.googleapis.com", "hub": "huggingface.co"}
"""Kind of source -> the server that its datasets are downloaded from."""


def find_missing(specs: Iterable[TaskSpec], source: Source) -> dict[str, str]:
    """Returns the tasks whose rows are not here and cannot be downloaded, by id, and how to get them."""
    reaches = functools.cache(is_reachable)
    found = {}
    for spec in specs:
        if spec.group == SEQIO or is_embedded(spec):
            continue
        remedy = describe_missing(all_datasets()[spec.dataset], spec, source, reaches)
        if remedy is not None and not task_rows.is_prepared(spec, source):
            found[spec.id] = remedy
    return found


def is_here(spec: TaskSpec, source: Source) -> bool:
    """Returns whether a task's rows can be read without a download."""
    if spec.group == SEQIO or is_embedded(spec):
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
    remedy = sources.find_remedy(dataset)
    try:
        chosen = sources.choose_source(dataset, source.data_dir)
    except UserError:
        return remedy
    root = None if source.data_dir is None else storage.path(source.data_dir)
    if root is not None and chosen.files and chosen.function is None:
        split = get_split(spec, source)
        files = [root / file.replace("{prompt}", spec.prompt) for file in chosen.files.get(split, ())]
        absent = [str(file) for file in files if not file.is_file()]
        return f"{remedy} Missing: {', '.join(absent) or split}." if absent or not files else None
    if chosen.kind not in _HOSTS or _is_downloaded(chosen, source) or reaches(_HOSTS[chosen.kind]):
        return None
    command = f"tfds build {chosen.name}"
    if chosen.kind == "hub":
        arguments = ", ".join(repr(each) for each in (chosen.name, chosen.config) if each)
        command = f'python -c "import datasets; datasets.load_dataset({arguments})"'
    return f"Run `{command}` where {_HOSTS[chosen.kind]} can be reached, and copy what it writes here."


def is_reachable(host: str) -> bool:
    """Returns whether a server answers, through a proxy where one is set, within `PATIENCE`."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        request = urllib.request.Request(f"https://{host}", method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError:  # it answered
            answers.put(True)
        except (OSError, http.client.HTTPException):
            answers.put(False)
        else:
            answers.put(True)

    # Looking up a name has no timeout of its own.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=PATIENCE)
    except queue.Empty:
        return False


def _is_downloaded(chosen: RowSource, source: Source) -> bool:
    """Returns whether TFDS has prepared a dataset here, or the hub's library has its rows, or it is local."""
    if chosen.kind == "tfds":
        root = None if source.data_dir is None else storage.path(source.data_dir)
        return sources.find_tfds_directory(chosen, root) is not None
    return any(place.is_dir() for place in (storage.path(chosen.name), sources.find_hub_caches(chosen)[1]))
