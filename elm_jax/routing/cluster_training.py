"""`elm train --clusters`: one expert for each cluster of a library's experts, on the tasks of all of them.

Model-based clustering as its paper uses it (Ostapenko et al. 2024, arXiv 2405.11157, section 3.2): the
experts of single tasks are clustered by their parameters (`mbc`), and one expert is trained on the joint rows
of each cluster. Routers then choose among these few.
"""

import re
from collections.abc import Callable

from elm_jax import names
from elm_jax.errors import UserError
from elm_jax.experts import training_rows
from elm_jax.experts.library import Library
from elm_jax.routing import mbc
from elm_jax.session.workspace import Run
from elm_jax.training.config import TrainConfig
from elm_jax.training.estimate import TrainingEstimate
from elm_jax.training.train import train

_OWN = re.compile(r"mbc\d+")


def train_clusters(
    run: Run,
    count: int,
    config: TrainConfig | None = None,
    *,
    on_estimate: Callable[[TrainingEstimate], None] | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Clusters the LoRA experts of a run's library, and trains one expert for each cluster into it.

    They are called `mbc<count>/<number>`. Those that are there are not trained again, and earlier ones are
    not clustered themselves. To let routers choose among them alone, name them in
    `EvaluationConfig(experts=…)`.

    Args:
        run: the run.
        count: how many clusters there are at most.
        config: as `train` has it.
        on_estimate: as `train` has it.
        dry_run: as `train` has it.

    Returns:
        The ids of the clusters' experts; none in a dry run.

    Raises:
        UserError: the library has no LoRA experts, fewer than `count` or of several shapes, or the tasks of
            one are not known; or as `train` raises.
    """
    library = Library.open(run.workspace.library)
    specs = [library.spec(name) for name in library.ids() if not _OWN.fullmatch(names.split_id(name)[0])]
    members = {spec.id: spec for spec in specs if spec.kind == "lora"}
    if not 1 <= count <= len(members):
        raise UserError(
            f"Expected from 1 to {len(members)} clusters, the LoRA experts of the library at "
            f"{str(library.root)!r}, got {count}. Fix: give another number, or train experts with `elm train "
            "--kind lora`."
        )
    points = mbc.embed_experts(library.load_stack(list(members), base=run.base.fingerprint))
    clusters = mbc.cluster_experts(points, list(members), count)
    tasks = {
        names.task_id(f"mbc{count}", str(number)): [
            task
            for member in cluster
            for task in training_rows.find_training_tasks(members[member], run.source)
        ]
        for number, cluster in enumerate(clusters, start=1)
    }
    return train(run, tasks, config, on_estimate=on_estimate, dry_run=dry_run)
