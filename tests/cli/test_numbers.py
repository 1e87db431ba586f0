"""Numbers that no command can use are one sentence, before anything is opened."""

import pytest

from elm_jax import cli


@pytest.mark.parametrize(
    "arguments",
    [
        "tasks preview dream/read_the_following --rows 0",
        "tasks preview dream/read_the_following --truncate -1",
        "tasks check dream --limit 0",
        "tasks check dream --limit few",
        "tasks check dream --max-prompt 0",
        "train dream --steps 0",
        "train dream --batch-size -2",
        "evaluate dream --queries 0",
        "evaluate dream --merged 0",
        "prepare dream --processes 0",
        "route dream --experts 0",
        "index --size 0",
    ],
)
def test_a_number_that_is_too_small_is_one_sentence_and_exit_code_2(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split())
    assert ended.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
