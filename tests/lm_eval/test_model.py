"""lm-eval over a run: its own task files on local rows, with experts and routers, and our own numbers."""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from elm_jax import score_choices
from elm_jax.axes import PAD
from elm_jax.data import task_rows, task_selection
from elm_jax.errors import UserError
from elm_jax.experts.library import Library
from elm_jax.merging.merge import merge
from elm_jax.models import expert_layers as ex
from elm_jax.models import paths
from elm_jax.models.sizes import find_config
from elm_jax.models.t5 import init_params
from elm_jax.records import Expert, ExpertSpec
from elm_jax.routing import gate_specs
from elm_jax.routing.index import index
from elm_jax.scoring import generator
from elm_jax.scoring.buckets import PromptWithChoices
from elm_jax.scoring.scorer import score_rows
from elm_jax.session import opening, settings
from elm_jax.session.workspace import Workspace
from elm_jax.tasks import data_source
from elm_jax.telemetry.progress import Stages
from elm_jax.tokenizers import sentencepiece
from elm_jax.weights import base_model, elm

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # lm-eval's and its libraries' own
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None, reason="the extra `lm-eval` is not installed"
    ),
]

LENGTHS = data_source.Lengths(prompt=48, answer=6)
EXPERTS = ["mini_sentiment_film", "mini_size_animal"]
COPA = [
    {
        "premise": "The dog ran home.",
        "choice1": "It was late.",
        "choice2": "It was red.",
        "question": "cause",
    },
    {
        "premise": "The cup fell.",
        "choice1": "It broke.",
        "choice2": "It was a good film.",
        "question": "effect",
    },
    {"premise": "I was sad.", "choice1": "The film was bad.", "choice2": "I was tall.", "question": "cause"},
]
COPA = [row | {"label": number % 2, "idx": number} for number, row in enumerate(COPA)]
STORIES = [
    {f"input_sentence_{part}": f"The {word} {part} ran." for part in (1, 2, 3, 4)}
    | {"sentence_quiz1": "It was late.", "sentence_quiz2": "The film was bad.", "answer_right_ending": right}
    for word, right in (("dog", 1), ("cat", 2), ("cup", 2))
]
BOOLQ = [
    {"passage": "The dog ran home.", "question": "did it run", "label": 1},
    {"passage": "The cup fell.", "question": "was it late", "label": 0},
]
PAGES = [{"page": "The dog ran home . It was late . " * 6}, {"page": "The cup fell ."}]
TEXTS = [{"text": "The dog ran home it was late"}, {"text": "The cup fell it was a bad film"}]
# lm-eval's own task files, and rows as the hub has them for these.
TASKS = {
    "copa": ("super_glue/copa/default.yaml", COPA),
    "storycloze": ("storycloze/storycloze_2016.yaml", STORIES),
    "boolq_written": ("super_glue/boolq/seq2seq.yaml", BOOLQ),
    "pages": ("wikitext/wikitext.yaml", PAGES),
    "last_word": ("lambada/lambada_openai.yaml", TEXTS),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a random base, two experts with keys in the library, and a full one among the composites."""
    workspace = Workspace.open(tmp_path_factory.mktemp("run"), create=True)
    config = find_config("tiny", vocab_size=224, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24)
    shapes = jax.eval_shape(lambda: init_params(jax.random.key(0), config))
    rng = np.random.default_rng(0)

    def numbers(tree):
        return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), tree)

    made = base_model.make_base(config, numbers(shapes))
    elm.save(workspace.base, made)
    source = data_source.Source(limit=20)
    chosen = [task_selection.select_tasks([name], source)[0] for name in EXPERTS]
    texts = [example.input for spec in chosen for example in task_rows.load_examples(spec, source)]
    texts += [
        str(value) for rows in (COPA, STORIES, BOOLQ, PAGES, TEXTS) for row in rows for value in row.values()
    ]
    sentencepiece.train(texts, workspace.base / opening.VOCABULARY_FILE, 200, extra_ids=opening.EXTRA_IDS)
    settings.save_run_settings(workspace, None, source, LENGTHS)
    library = Library.open(workspace.library, create=True)
    fresh = jax.eval_shape(lambda tree: ex.init_expert("lora", jax.random.key(0), tree, {"rank": 2}), shapes)
    for spec in chosen:
        tree = numbers(fresh)
        owned = tuple(paths.flatten(tree))
        library.add(Expert(ExpertSpec(spec.id, "lora", made.fingerprint, owned, (spec.dataset,), 5), tree))
    opened = opening.open_run(workspace.root, stages=Stages())
    index(opened, size=6)
    whole = numbers(shapes)
    composites = Library.open(workspace.composites, create=True)
    owned = tuple(paths.flatten(whole))
    composites.add(Expert(ExpertSpec("other/full", "full", made.fingerprint, owned, ("other",), 5), whole))
    return opened


@pytest.fixture(scope="module")
def ids(run):
    return list(Library.open(run.workspace.library).ids())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files that read lm-eval's own, with local rows in the place of the hub's."""
    import lm_eval

    place = tmp_path_factory.mktemp("tasks")
    theirs = Path(lm_eval.__file__).parent / "tasks"
    for name, (file, rows) in TASKS.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        told = {
            "train": f"{place}/{name}.jsonl",
            "validation": f"{place}/{name}.jsonl",
            "test": f"{place}/{name}.jsonl",
        }
        kwargs = {"data_files": told, "cache_dir": f"{place}/cache"}
        head = {"task": f"local_{name}", "include": f"{theirs}/{file}", "tag": None, "dataset_path": "json"}
        head |= {"dataset_name": None, "dataset_kwargs": kwargs}
        (place / f"{name}.yaml").write_text(json.dumps(head))
    return place


def evaluate(run, folder, tasks, **arguments):
    """What lm-eval's own evaluation gives, and its samples by task."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    from elm_jax.lm_eval import model

    lm = model.ElmLM(run=str(run.workspace.root), **arguments)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=[f"local_{task}" for task in tasks],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    return lm, found["results"], found["samples"]


def arrays(run, contexts, choices):
    """Padded prompts and answers, tokenised one by one with end-of-sequence."""
    prompts = [[*run.tokenizer.encode(text), run.tokenizer.eos] for text in contexts]
    answers = [[[*run.tokenizer.encode(text), run.tokenizer.eos] for text in own] for own in choices]
    longest = max(len(answer) for own in answers for answer in own)
    padded = np.zeros((len(prompts), max(map(len, prompts))), np.int32)
    laid = np.zeros((len(prompts), max(map(len, answers)), longest), np.int32)
    for row, (prompt, own) in enumerate(zip(prompts, answers, strict=True)):
        padded[row, : len(prompt)] = prompt
        for choice, answer in enumerate(own):
            laid[row, choice, : len(answer)] = answer
    return padded, laid


def requests_of(samples):
    """Contexts, and continuations of each, as lm-eval asked for them."""
    asked = [[request[:2] for request in sample["arguments"]] for sample in samples]
    return [own[0][0] for own in asked], [[continuation for _, continuation in own] for own in asked]


def scores_of(samples):
    return [[float(score) for score, _ in sample["filtered_resps"]] for sample in samples]


def test_multiple_choice_tasks_score_as_score_choices_does(run, folder, ids):
    expert = ids[0]
    _, found, samples = evaluate(run, folder, ["copa", "storycloze"], expert=expert)
    loaded = Library.open(run.workspace.library).load_expert(expert)
    for task, rows in (("local_copa", COPA), ("local_storycloze", STORIES)):
        assert 0 <= found[task]["acc,none"] <= 1
        assert len(samples[task]) == len(rows)
        contexts, choices = requests_of(samples[task])
        wanted = score_choices(run.base, *arrays(run, contexts, choices), loaded)
        np.testing.assert_allclose(scores_of(samples[task]), wanted, atol=1e-4)
    right = [
        int(np.argmax(scores)) == row["label"]
        for scores, row in zip(scores_of(samples["local_copa"]), COPA, strict=True)
    ]
    assert found["local_copa"]["acc,none"] == pytest.approx(np.mean(right))


def test_the_base_and_a_full_expert_score_with_their_own_weights(run, folder):
    composites = Library.open(run.workspace.composites)
    for arguments, owned in (({}, None), ({"expert": "other/full"}, composites.load_expert("other/full"))):
        _, _, samples = evaluate(run, folder, ["copa"], **arguments)
        wanted = score_choices(run.base, *arrays(run, *requests_of(samples["local_copa"])), owned)
        np.testing.assert_allclose(scores_of(samples["local_copa"]), wanted, atol=1e-4)


def test_generative_tasks_get_the_answers_of_our_generator(run, folder, ids):
    expert = ids[1]
    _, _, samples = evaluate(run, folder, ["boolq_written"], expert=expert, max_gen_toks=5)
    contexts, _ = requests_of(samples["local_boolq_written"])
    prompts = [[*run.tokenizer.encode(text), run.tokenizer.eos] for text in contexts]
    stack = Library.open(run.workspace.library).load_stack([expert])
    limit = generator.AnswerLimit(5, run.tokenizer.eos)
    written = generator.generate_rows(run.base.config, run.base.params, prompts, limit, stack)
    texts = [run.tokenizer.decode(tokens[tokens != PAD].tolist()) for tokens in written]
    assert [sample["resps"][0][0] for sample in samples["local_boolq_written"]] == texts
    assert any(texts)


def test_a_continuation_is_greedy_if_our_generator_would_write_it(run):
    from lm_eval.api.instance import Instance

    from elm_jax.lm_eval import model

    lm = model.ElmLM(run=str(run.workspace.root), eos=False)
    context = "The dog ran home."
    every = [run.tokenizer.decode([piece]) for piece in range(2, 200)]
    pieces = [text for text in every if len(run.tokenizer.encode(text)) == 1]
    asked = [Instance("loglikelihood", {}, (context, text), 0) for text in pieces]
    told = [greedy for _, greedy in lm.loglikelihood(asked, disable_tqdm=True)]
    prompt = [*run.tokenizer.encode(context), run.tokenizer.eos]
    limit = generator.AnswerLimit(1, run.tokenizer.eos)
    ((first, *_),) = generator.generate_rows(run.base.config, run.base.params, [prompt], limit)
    assert told == [run.tokenizer.encode(text) == [first] for text in pieces]


def test_perplexity_sums_over_windows_of_the_text(run, folder):
    _, found, samples = evaluate(run, folder, ["pages", "last_word"], max_length=8)
    assert found["local_pages"]["word_perplexity,none"] > 1
    assert found["local_last_word"]["perplexity,none"] > 1
    sample = samples["local_pages"][0]
    ((text,),) = sample["arguments"]
    tokens = [*run.tokenizer.encode(text), run.tokenizer.eos]
    assert len(tokens) > 16
    # The last window is shorter, and what it leaves of eight tokens goes to the encoder.
    windows = [PromptWithChoices([run.tokenizer.eos], [tokens[:8]])]
    windows += [
        PromptWithChoices(tokens[min(at, len(tokens) - 8) - 1 : at], [tokens[at : at + 8]])
        for at in range(8, len(tokens), 8)
    ]
    by_hand = score_rows(run.base.config, run.base.params, windows)
    told = sample["filtered_resps"][0]
    assert float(told) == pytest.approx(sum(float(each[0]) for each in by_hand), abs=1e-3)


def test_a_router_chooses_for_each_task_by_its_own_contexts(run, folder, ids):
    lm, _, samples = evaluate(run, folder, ["copa", "storycloze"], router="roe", queries=2)
    assert set(lm.selections) == {"local_copa", "local_storycloze"}
    for task, selection in lm.selections.items():
        assert sum(selection.votes.values()) == 2
        (expert,) = selection.weights
        wanted = score_choices(
            run.base,
            *arrays(run, *requests_of(samples[task])),
            Library.open(run.workspace.library).load_expert(expert),
        )
        np.testing.assert_allclose(scores_of(samples[task]), wanted, atol=1e-4)


def test_experts_of_an_excluded_dataset_are_not_chosen(run, folder, ids):
    lm, _, _ = evaluate(run, folder, ["copa"], router="roe", exclude=EXPERTS[0])
    assert list(lm.selections["local_copa"].weights) == [ids[1]]


def test_several_experts_are_averaged(run, folder, ids):
    lm, _, samples = evaluate(run, folder, ["copa"], router="uniform")
    assert list(lm.selections["local_copa"].weights) == ids
    # What is averaged is the change of the weights, not the factors of a LoRA.
    merged = set(Library.open(run.workspace.composites).ids()) - {"other/full"}
    (expert,) = merged
    wanted = score_choices(
        run.base,
        *arrays(run, *requests_of(samples["local_copa"])),
        Library.open(run.workspace.composites).load_expert(expert),
    )
    np.testing.assert_allclose(scores_of(samples["local_copa"]), wanted, atol=1e-4)


def test_experts_are_merged_as_a_method_says(run, folder, ids):
    lm, _, samples = evaluate(run, folder, ["copa"], router="two=uniform+ties:density=0.5")
    assert set(lm.selections["local_copa"].weights) == set(ids)
    merged = merge(run, ids, "ties", options={"density": 0.5})
    wanted = score_choices(run.base, *arrays(run, *requests_of(samples["local_copa"])), merged)
    np.testing.assert_allclose(scores_of(samples["local_copa"]), wanted, atol=1e-4)


def test_keys_are_asked_for_by_routers_that_read_them_alone(run, folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(run.workspace.root, bare)
    for file in bare.glob("library/*/*/keys*"):
        file.unlink()
    copied = replace(run, workspace=Workspace.open(bare))
    lm, _, _ = evaluate(copied, folder, ["copa"], router="uniform")
    assert list(lm.selections["local_copa"].weights) == list(Library.open(bare / "library").ids())
    with pytest.raises(UserError, match="Expected keys of every expert"):
        evaluate(copied, folder, ["copa"], router="roe")


def test_a_group_of_lm_evals_has_the_mean_of_its_tasks(run, folder, ids):
    metrics = [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}]
    group = {
        "group": "local_pair",
        "task": ["local_copa", "local_storycloze"],
        "aggregate_metric_list": metrics,
    }
    (folder / "pair.yaml").write_text(json.dumps(group))
    lm, found, samples = evaluate(run, folder, ["pair"], router="roe", queries=2)
    assert set(samples) == set(lm.selections) == {"local_copa", "local_storycloze"}
    rows = [sample["acc"] for own in samples.values() for sample in own]
    assert found["local_pair"]["acc,none"] == pytest.approx(np.mean(rows))


def test_an_instance_router_chooses_an_expert_for_each_context(run, folder, ids):
    lm, _, samples = evaluate(run, folder, ["copa"], router="roe_per_instance")
    contexts, choices = requests_of(samples["local_copa"])
    library = Library.open(run.workspace.library)
    chosen = [expert for expert, _ in lm.selections["local_copa"].nearest]
    assert len(chosen) == len(COPA)
    for row, expert in enumerate(chosen):
        wanted = score_choices(
            run.base,
            *arrays(run, contexts[row : row + 1], choices[row : row + 1]),
            library.load_expert(expert),
        )
        np.testing.assert_allclose(scores_of(samples["local_copa"])[row], wanted[0], atol=1e-4)


def test_a_long_context_loses_its_beginning_with_a_message(run, capsys):
    from elm_jax.lm_eval import model

    lm = model.ElmLM(run=str(run.workspace.root), max_length=4)
    (whole,) = [run.tokenizer.encode("The dog ran home. It was late.")]
    kept = [*whole[-3:], run.tokenizer.eos]
    assert lm._encode_contexts(["The dog ran home. It was late."] * 2) == [kept, kept]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 1 contexts have more than 4 tokens" in said
    assert f"{len(whole) - 3} of {len(whole)} tokens in all; max_length={len(whole) + 1} keeps them" in said
    assert lm._encode_contexts([""]) == [[run.tokenizer.eos]]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"expert": "mini_sentiment_filn/x"}, "No expert named"),
        ({"router": "oracle"}, "'oracle', which needs 'accuracies'"),
        ({"router": "roe", "expert": "base"}, "expert=base and router=roe"),
        ({"router": "best_single"}, "'best_single', which needs 'accuracies'"),
        ({"router": "lorahub"}, "'lorahub', which needs 'loss'"),
        ({"router": "own"}, "'own', which needs 'the names of our tasks'"),
        ({"router": "roe+finetune"}, "which needs 'labelled rows'"),
        ({"router": "roe:experts=2+ensemble"}, "which needs 'the scores of several experts'"),
        ({"router": "multitask"}, "trained on many tasks for method 'multitask', got none"),
        ({"router": "roe", "experts": 0}, "Expected experts as a whole number of at least 1, got 0"),
        ({"router": "roe", "queries": -1}, "Expected queries as a whole number of at least 1, got -1"),
        ({"pretrained": "x"}, "'pretrained'"),
    ],
)
def test_wrong_arguments_are_refused(run, arguments, said):
    from elm_jax.lm_eval import model

    with pytest.raises(UserError, match=said):
        model.ElmLM(run=str(run.workspace.root), **arguments)


@pytest.mark.parametrize("options", [{"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}])
def test_sampling_and_beams_are_refused(run, options):
    from lm_eval.api.instance import Instance

    from elm_jax.lm_eval import model

    lm = model.ElmLM(run=str(run.workspace.root))
    with pytest.raises(UserError, match="greedy"):
        lm.generate_until([Instance("generate_until", {}, ("The dog", options), 0)])


def test_an_expert_with_nan_is_named(run):
    from lm_eval.api.instance import Instance

    from elm_jax.lm_eval import model

    composites = Library.open(run.workspace.composites)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, dict(composites.load_expert("other/full").params))
    spec = composites.spec("other/full")
    composites.add(Expert(ExpertSpec("other/broken", "full", spec.base, spec.paths, ("other",), 5), broken))
    try:
        lm = model.ElmLM(run=str(run.workspace.root), expert="other/broken")
        with pytest.raises(UserError, match="'other/broken'"):
            lm.loglikelihood([Instance("loglikelihood", {}, ("The dog", "ran"), 0)])
        with pytest.raises(UserError, match="'other/broken'"):
            lm.generate_until([Instance("generate_until", {}, ("The dog", {}), 0)])
    finally:
        composites.remove("other/broken")


def test_lm_evals_command_knows_the_model_and_ends_with_code_2_on_our_errors(
    run, folder, tmp_path, monkeypatch, capsys
):
    from elm_jax.lm_eval import __main__ as launcher

    words = ["lm-eval", "--model", "elm", "--tasks", "local_copa", "--include_path", str(folder)]
    out = ["--output_path", str(tmp_path)]
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [])  # its command adds one of its own
    monkeypatch.setattr("sys.argv", [*words, *out, "--model_args", f"run={run.workspace.root},expert=base"])
    launcher.main()
    assert "local_copa" in capsys.readouterr().out
    (told,) = tmp_path.rglob("results_*.json")
    assert "acc,none" in json.loads(told.read_text())["results"]["local_copa"]
    monkeypatch.setattr("sys.argv", [*words, "--model_args", f"run={run.workspace.root},router=rio"])
    with pytest.raises(SystemExit) as ended:
        launcher.main()
    assert ended.value.code == 2
    assert "No router named 'rio'" in capsys.readouterr().err


@pytest.mark.nightly
def test_one_command_evaluates_several_methods_over_one_base(run, folder, ids, tmp_path, monkeypatch, capsys):
    from elm_jax.lm_eval import __main__ as launcher

    opened = []
    open_run = opening.open_run
    monkeypatch.setattr(opening, "open_run", lambda where: opened.append(where) or open_run(where))
    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [])  # its command adds one of its own
    methods = {"base": "base", "first": f'first=fixed:expert="{ids[0]}"', "roe": "roe"}
    words = ["lm-eval", *(word for method in methods.values() for word in ("--method", method))]
    words += ["--model_args", f"run={run.workspace.root},queries=2", "--tasks", "local_copa"]
    words += ["--include_path", str(folder), "--output_path", str(tmp_path), "--log_samples"]
    monkeypatch.setattr("sys.argv", [*words, "--use_cache", str(tmp_path / "answers")])
    launcher.main()
    assert opened == [str(run.workspace.root)]
    told = capsys.readouterr().out
    assert [told.count(f"elm('{name}') (") for name in methods] == [1, 1, 1]
    alone = {"base": {}, "first": {"expert": ids[0]}, "roe": {"router": "roe", "queries": 2}}
    for name, arguments in alone.items():
        (results,) = (tmp_path / name).glob("results_*.json")
        (kept,) = (tmp_path / name).glob("samples_*.jsonl")
        _, found, samples = evaluate(run, folder, ["copa"], **arguments)
        told = json.loads(results.read_text())
        assert told["results"]["local_copa"]["acc,none"] == found["local_copa"]["acc,none"]
        assert (told["model_name"], told["config"]["model_args"]["method"]) == (name, methods[name])
        rows = [json.loads(line) for line in kept.read_text().splitlines()]
        rows.sort(key=lambda row: row["doc_id"])
        np.testing.assert_allclose(scores_of(rows), scores_of(samples["local_copa"]), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "roe", "--method", "rio", "--model_args", "run={run}"], "No router named 'rio'"),
        (["--method", "roe", "--method", "roe", "--model_args", "run={run}"], "two that are called 'roe'"),
        (["--method", "roe"], "--model_args run=DIR"),
        (["--method", "roe", "--model_args", "run={run},expert=base"], "got expert="),
    ],
)
def test_wrong_methods_end_the_command_before_anything_is_evaluated(run, monkeypatch, capsys, words, said):
    from elm_jax.lm_eval import __main__ as launcher

    monkeypatch.setattr(logging.getLogger("lm_eval"), "handlers", [])
    given = [word.format(run=run.workspace.root) for word in words]
    monkeypatch.setattr("sys.argv", ["lm-eval", *given, "--tasks", "local_copa"])
    with pytest.raises(SystemExit) as ended:
        launcher.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_of_the_module_runs():
    command = [sys.executable, "-m", "elm_jax.lm_eval", "--method", "roe", "--tasks", "local_copa"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "--model_args run=DIR" in done.stderr


def test_a_token_router_serves_all_requests(run, folder, ids):
    lm, _, samples = evaluate(run, folder, ["copa"], router="arrow")
    _, _, bare = evaluate(run, folder, ["copa"])
    (gate,) = lm.gates
    rows = requests_of(samples["local_copa"])
    pairs = zip(*arrays(run, *rows), strict=True)
    asked = [
        PromptWithChoices(prompt[prompt > 0], [answer[answer > 0] for answer in own]) for prompt, own in pairs
    ]
    tree = gate_specs.load_gate(run, lm.gates[gate])
    wanted = score_rows(run.base.config, run.base.params, asked, tree, stacked=False)
    np.testing.assert_allclose(scores_of(samples["local_copa"]), wanted, atol=1e-4)
    assert scores_of(samples["local_copa"]) != scores_of(bare["local_copa"])


def test_requests_score_as_elm_evaluate_does(run, ids):
    from lm_eval.api.instance import Instance

    from elm_jax.lm_eval import model

    spec = task_selection.select_tasks([EXPERTS[0]], run.source)[0]
    rows = task_rows.build_scoring_rows(
        task_rows.load_examples(spec, run.source), run.tokenizer, run.lengths, task=spec.id
    )
    stack = Library.open(run.workspace.library).load_stack([ids[0]])
    ours = score_rows(run.base.config, run.base.params, rows, stack)
    lm = model.ElmLM(run=str(run.workspace.root), expert=ids[0])
    pairs = [
        (each.input, choice) for each in task_rows.load_examples(spec, run.source) for choice in each.choices
    ]
    told = lm.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    np.testing.assert_allclose([score for score, _ in told], np.concatenate(ours), atol=1e-4)


def test_contexts_end_with_end_of_sequence_unless_the_base_was_trained_without_it(run, ids):
    from elm_jax.lm_eval import model

    lm = model.ElmLM(run=str(run.workspace.root), expert=ids[0])
    word = run.tokenizer.encode("is")
    assert lm._encode_contexts(["is", ""]) == [[*word, run.tokenizer.eos], [run.tokenizer.eos]]
    lm.run = replace(lm.run, tokenizer=replace(lm.run.tokenizer, input_eos=False))
    assert lm._encode_contexts(["is", ""]) == [word, [run.tokenizer.eos]]
