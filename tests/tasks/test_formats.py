"""The files of DREAM, BIG-bench and CT0 give the rows that the paper's templates and texts were made from."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elm_jax.errors import UserError
from elm_jax.tasks import formats
from tests.shared_data import DATA


@pytest.fixture
def file(tmp_path):
    return tmp_path / "rows"


def read(reader, file: Path, content):
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return list(formats.READERS[reader](file))


DIALOGUE = [
    ["W: Hi.", "M: Ho."],
    [
        {"question": "Who?", "choice": ["W", "M"], "answer": "M"},
        {"question": "What?", "choice": ["x", "y"], "answer": "x"},
    ],
    "4-1",
]


def test_dream_gives_a_row_a_question(file):
    rows = read("dream", file, json.dumps([DIALOGUE, [*DIALOGUE[:2], "4-2"]]))
    assert [(row["id"], row["dialogue_id"], row["question"]) for row in rows] == [
        (0, "4-1", "Who?"),
        (1, "4-1", "What?"),
        (2, "4-2", "Who?"),
        (3, "4-2", "What?"),
    ]
    assert rows[1] == {
        "id": 1,
        "dialogue_id": "4-1",
        "dialogue": ["W: Hi.", "M: Ho."],
        "question": "What?",
        "choice": ["x", "y"],
        "answer": "x",
    }


EXAMPLE = {"input": "Is it?", "target_scores": {"Yes": 0, "No": 1}}


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({}, "\nQ: Is it?\n choice: Yes\n choice: No\nA: "),
        ({"append_choices_to_input": False}, "\nQ: Is it?\nA: "),
        # a text counts as true
        ({"append_choices_to_input": "false"}, "\nQ: Is it?\n choice: Yes\n choice: No\nA: "),
        (
            {
                "task_prefix": "Answer.",
                "example_input_prefix": "",
                "choice_prefix": "\n option: ",
                "example_output_prefix": "\nAnswer: ",
            },
            "Answer.Is it?\n option: Yes\n option: No\nAnswer: ",
        ),
        ({"description": "Not shown."}, "\nQ: Is it?\n choice: Yes\n choice: No\nA: "),
    ],
)
def test_bigbench_texts_are_the_papers(file, task, text):
    (row,) = read("bigbench", file, {"examples": [EXAMPLE], **task})
    assert row == {"text": text, "choices": ["Yes", "No"], "label": 1}


@pytest.mark.parametrize("scores", [{"a": 1, "b": 1}, {"a": 0, "b": 0}, {"a": 0.5, "b": 0.4}])
def test_a_bigbench_row_without_one_right_choice_has_no_label(file, scores):
    (row,) = read("bigbench", file, {"examples": [{"input": "x", "target_scores": scores}]})
    assert row["label"] is None


def test_ct0_gives_a_row_a_pair_and_all_references(file):
    rows = read("ct0", file, {"src": ["a", "b"], "tgt": ["c", ["d", "e"]], "src_info": [None, None]})
    assert rows == [
        {"src": "a", "tgt": "c", "references": ["c"]},
        {"src": "b", "tgt": "d", "references": ["d", "e"]},
    ]


@pytest.mark.parametrize(
    ("reader", "content", "message"),
    [
        ("dream", "", "expected JSON"),
        ("dream", "[]", "got none"),
        ("dream", "{}", "to hold a list of dialogues"),
        ("dream", json.dumps([DIALOGUE, DIALOGUE[:2]]), "dialogue 2: expected .turns"),
        ("dream", json.dumps([[["x"], [{"question": "q"}], "1"]]), "dialogue 1: expected .turns"),
        (
            "dream",
            json.dumps([["x", DIALOGUE[1], "1"]]),
            "dialogue 1: expected a list of texts as dialogue",
        ),
        ("dream", json.dumps([[*DIALOGUE[:2], 4]]), "dialogue 1: .* dialogue_id, got 4"),
        ("dream", '[\n[["x"],\n[}', "line 3: expected JSON"),
        ("bigbench", {"name": "parent"}, "subfolders"),
        ("bigbench", {"examples": []}, "got none"),
        ("bigbench", {"examples": [EXAMPLE, {"input": "x", "target": "y"}]}, "example 2: .*target_scores"),
        ("bigbench", {"examples": [{**EXAMPLE, "input": ["x"]}]}, "example 1: expected `input`"),
        ("bigbench", {"examples": ["x"]}, "example 1: expected `input`"),
        ("bigbench", {"examples": [{**EXAMPLE, "input": "x\0"}]}, "example 1: .* NUL .* column 'text'"),
        ("bigbench", {"examples": [EXAMPLE], "task_prefix": 5}, "task_prefix, got 5"),
        ("bigbench", [], "to hold a JSON object"),
        ("ct0", {"src": ["a"], "tgt": []}, "`src` and `tgt`"),
        ("ct0", {"src": "a", "tgt": "b"}, "`src` and `tgt`"),
        ("ct0", {"src": ["a", "b"], "tgt": ["c", []]}, "pair 2: expected texts"),
        ("ct0", {"src": ["a", 3], "tgt": ["c", "d"]}, "pair 2: expected texts"),
        ("ct0", {"src": [], "tgt": []}, "got none"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_file_of_another_shape_is_an_error_naming_file_and_place(file, reader, content, message):
    with pytest.raises(UserError, match=rf"rows'.*{message}"):
        read(reader, file, content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["examples", "input", "target_scores", "src", "tgt", "x"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(formats.READERS)), JSON)
def test_any_json_is_rows_or_a_user_error(tmp_path_factory, reader, content):
    file = tmp_path_factory.mktemp("any") / "rows"
    try:
        rows = read(reader, file, json.dumps(content))
    except UserError:
        return
    assert rows


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("reader", "name", "count"),
    [
        ("dream", "dream/train.json", 6116),
        ("dream", "dream/dev.json", 2040),
        ("dream", "dream/test.json", 2041),
        ("bigbench", "bigbench/novel_concepts/task.json", 32),
        ("bigbench", "bigbench/logical_deduction/three_objects/task.json", 300),
        ("bigbench", "bigbench/conceptual_combinations/homonyms/task.json", 9),
    ],
)
def test_the_real_files_have_as_many_rows_as_published(reader, name, count):
    rows = list(formats.READERS[reader](DATA / name))
    assert len(rows) == count
    # Two rows of novel_concepts have two right choices, which is why the paper leaves it out.
    unlabelled = sum(row.get("label", 0) is None for row in rows)
    assert unlabelled == (2 if "novel_concepts" in name else 0)
