"""How often 95 % intervals hold the truth, and how often paired tests raise false alarms, in made-up studies.

python -m benchmarks.coverage [--studies 2000] [--rows 20 56 300] [--prompts 1 5 15] [--json FILE]

Two methods answer rows of one dataset under several prompts. Whether an answer is right depends on the
method, on how hard the row is for both and for each, on the prompt, on how the method takes the prompt, and
on chance (a probit model with normal effects), so that the true accuracies are known: for these prompts, and
for all prompts like them. Each study is drawn anew; intervals and tests are those of reports.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from elm_jax.errors import UserError
from elm_jax.records import TaskScores
from elm_jax.reporting.metrics import macro_mean
from elm_jax.reporting.significance import mcnemar_test, paired_difference

SHARED_ROW, OWN_ROW, SHARED_PROMPT = 0.8, 0.5, 0.3
"""Standard deviations in probits: of a row's difficulty for both methods and each, of a prompt's for both."""

METHOD_BY_PROMPT = (0.0, 0.2)
"""Standard deviations of how differently methods take a prompt, in probits: 0.2 is about 6 points."""

LIFTS = (0.0, 0.25)
"""How much better one method is, in probits: 0.25 is about 8 points."""


@dataclass(frozen=True)
class Study:
    """What is drawn again and again.

    Attributes:
        rows: of the dataset.
        prompts: of the dataset.
        lift: how much better the first method is, in probits.
        method_by_prompt: standard deviation of a method's own effect of a prompt, in probits.
    """

    rows: int
    prompts: int
    lift: float
    method_by_prompt: float


@dataclass
class Coverage:
    """Shares of studies.

    Attributes:
        accuracy: whose interval of a macro accuracy held the truth for these prompts.
        difference: whose interval of a difference held the truth for these prompts.
        difference_over_prompts: whose interval over prompts held the truth for all; None for one prompt.
        rejected: where the test called the methods different, which is a false alarm where the lift is 0.
        rejected_over_prompts: the same over prompts; None for one prompt.
        rejected_by_mcnemar: the same by McNemar's test.
    """

    accuracy: float = 0.0
    difference: float = 0.0
    difference_over_prompts: float | None = None
    rejected: float = 0.0
    rejected_over_prompts: float | None = None
    rejected_by_mcnemar: float = 0.0


def measure_coverage(study: Study, studies: int, samples: int, seed: int) -> Coverage:
    """Returns how often intervals hold and tests reject, in `studies` draws of one study."""
    found = [list(_draw(study, np.random.default_rng([seed, number]), samples)) for number in range(studies)]
    means = [float(np.mean(column)) for column in zip(*found, strict=True)]
    if study.prompts == 1:
        accuracy, difference, rejected, mcnemar = means
        return Coverage(accuracy, difference, None, rejected, None, mcnemar)
    accuracy, difference, rejected, mcnemar, over, rejected_over = means
    return Coverage(accuracy, difference, over, rejected, rejected_over, mcnemar)


def _draw(study: Study, rng: np.random.Generator, samples: int) -> Iterator[bool]:
    """Yields of one study which intervals hold and which tests reject, in the order of `measure_coverage`."""
    shared_prompt = rng.normal(0, SHARED_PROMPT, study.prompts)
    own_prompt = rng.normal(0, study.method_by_prompt, (2, study.prompts))
    levels = np.array([[study.lift], [0.0]]) + shared_prompt + own_prompt
    shared_row = rng.normal(0, SHARED_ROW, study.rows)
    own_row = rng.normal(0, OWN_ROW, (2, study.rows))
    latent = (
        levels[:, :, None] + (shared_row + own_row)[:, None] + rng.normal(size=(2, study.prompts, study.rows))
    )
    right = latent > 0
    # Of these prompts, over all rows; and of all prompts.
    truth = ndtr(levels / np.sqrt(1 + SHARED_ROW**2 + OWN_ROW**2)).mean(axis=1)
    spread = np.sqrt(1 + SHARED_ROW**2 + OWN_ROW**2 + SHARED_PROMPT**2 + study.method_by_prompt**2)
    truth_of_all = float(ndtr(study.lift / spread) - ndtr(0.0))
    a, b = (_scores(name, own) for name, own in zip("ab", right, strict=True))
    mean = macro_mean(a)
    yield mean.low <= truth[0] <= mean.high
    seed = int(rng.integers(2**31))
    found = paired_difference(a, b, samples=samples, seed=seed)
    yield found.low <= truth[0] - truth[1] <= found.high
    yield found.p < 0.05
    yield mcnemar_test(a, b).p < 0.05
    if study.prompts > 1:
        over = paired_difference(a, b, over="prompts", samples=samples, seed=seed)
        yield over.low <= truth_of_all <= over.high
        yield over.p < 0.05


def _scores(method: str, right: Float[np.ndarray, "prompts rows"]) -> list[TaskScores]:
    rows = tuple(map(str, range(right.shape[1])))
    zeros = (0,) * len(rows)
    return [
        TaskScores(f"made_up/{number}", method, rows, (), tuple((~own).astype(int).tolist()), zeros)
        for number, own in enumerate(right)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--rows", type=int, nargs="+", default=[20, 56, 300])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 5, 15])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file to write")
    arguments = parser.parse_args()
    if arguments.studies < 1:
        raise UserError(f"Expected studies to draw, got {arguments.studies}.")
    columns = "rows prompts lift method×prompt accuracy difference over_prompts rejected over_prompts McNemar"
    print("|", " | ".join(columns.split()), "|")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    records = []
    for rows in arguments.rows:
        for prompts in arguments.prompts:
            for lift in LIFTS:
                for deviation in METHOD_BY_PROMPT if prompts > 1 else METHOD_BY_PROMPT[:1]:
                    study = Study(rows, prompts, lift, deviation)
                    found = measure_coverage(study, arguments.studies, arguments.samples, arguments.seed)
                    records.append(asdict(study) | asdict(found))
                    shares = (f"{100 * each:.1f}" if each is not None else "–" for each in _columns(found))
                    print(
                        "|",
                        " | ".join([str(rows), str(prompts), str(lift), str(deviation), *shares]),
                        "|",
                        flush=True,
                    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(records, file, indent=2)


def _columns(found: Coverage) -> tuple[float | None, ...]:
    return (
        found.accuracy,
        found.difference,
        found.difference_over_prompts,
        found.rejected,
        found.rejected_over_prompts,
        found.rejected_by_mcnemar,
    )


if __name__ == "__main__":
    main()
