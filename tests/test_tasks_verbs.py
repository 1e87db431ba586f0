"""`elm tasks list` names every task once, for people and for scripts."""

import json

import pytest

from elm_jax import cli


def listed(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["tasks", "list", *arguments])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("group", "count", "metrics"),
    [
        ("train", 296, {"accuracy", "rouge_l", "exact_match"}),
        ("unseen", 113, {"accuracy"}),
        ("bigbench", 13, {"accuracy"}),
        ("targets", 16, {"bleu", "rouge_1", "bert_score"}),
        ("mini", 36, {"accuracy"}),
    ],
)
def test_a_group_is_listed_with_one_entry_a_pair(capsys, group, count, metrics):
    entries = json.loads(listed(capsys, "--group", group, "--json"))
    assert len(entries) == len({entry["id"] for entry in entries}) == count
    assert {entry["group"] for entry in entries} == {group}
    assert {entry["metric"] for entry in entries} == metrics
    assert all(entry["id"] == f"{entry['dataset']}/{entry['prompt']}" for entry in entries)
    assert all("config" in entry for entry in entries)
    assert len(listed(capsys, "--group", group).splitlines()) == count


def test_the_parts_of_the_embedded_suite_are_groups_too(capsys):
    train = json.loads(listed(capsys, "--group", "mini-train", "--json"))
    assert {entry["group"] for entry in train} == {"mini-train"}
    every = json.loads(listed(capsys, "--json"))
    assert {entry["group"] for entry in every} == {
        "train",
        "unseen",
        "bigbench",
        "targets",
        "mini-train",
        "mini-unseen",
    }
