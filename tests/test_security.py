"""What SECURITY.md says of the code: nothing is unpickled, and nothing that is read names what is run."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "elm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
UNPICKLERS = {"_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
REMOTE = {"peft", "sentence_transformers", "transformers"}  # which can run code that a repository brings


def nodes(kind):
    return [
        (file, node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, kind)
    ]


def imported():
    for file, node in nodes(ast.Import):
        yield from ((file, alias.name.partition(".")[0]) for alias in node.names)
    for file, node in nodes(ast.ImportFrom):
        yield file, (node.module or "").partition(".")[0]


def calls():
    return [(file, ast.unparse(node.func), node) for file, node in nodes(ast.Call)]


def test_no_module_imports_what_unpickles_or_runs_a_repositorys_code():
    found = list(imported())
    assert len(found) > 1000  # so that the walk is one
    assert [(file.name, name) for file, name in found if name in UNPICKLERS | REMOTE] == []


def test_nothing_is_unpickled_but_by_workers_what_their_parent_sent():
    users = {file for file, name in imported() if name == "pickle"}
    used = {
        (file.name, node.attr)
        for file, node in nodes(ast.Attribute)
        if file in users and ast.unparse(node.value) == "pickle"
    }
    assert used == {
        ("prepare_jobs.py", "dumps"),
        ("prepare_jobs.py", "PicklingError"),
        ("row_ranges.py", "loads"),
        ("isolation.py", "dumps"),
        ("isolation.py", "PicklingError"),
        ("template_worker.py", "loads"),
    }
    # Its input is a pipe from the process that started it.
    worker = (PACKAGE / "prompting" / "template_worker.py").read_text()
    assert "sys.stdin.buffer" in worker
    assert worker.count("pickle.loads(") == 3


def test_arrays_are_not_read_by_numpy_which_could_unpickle():
    readers = ("np.load", "numpy.load", "np.fromfile", "pd.read_pickle")
    assert [(file.name, called) for file, called, _ in calls() if called in readers] == []
    assert [file.name for file, node in nodes(ast.keyword) if node.arg == "allow_pickle"] == []


def test_torch_reads_weights_only():
    found = [node for _, called, node in calls() if called == "torch.load"]
    assert len(found) == 1
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in found[0].keywords}
    assert given["weights_only"] == "True"


@pytest.mark.parametrize("name", ["eval", "exec", "compile", "__import__", "os.system", "os.popen"])
def test_no_text_is_run_as_code(name):
    assert [file.name for file, called, _ in calls() if called == name] == []


def test_yaml_is_read_with_a_loader_of_plain_values_alone():
    from elm_jax.prompting import reader

    loaders = [
        ast.unparse(node) for _, called, node in calls() if called.startswith("yaml.") and "load" in called
    ]
    assert loaders == ["yaml.load(text, Loader=_Loader)"]
    assert reader._Loader.__mro__[1].__name__ in ("CSafeLoader", "SafeLoader")


def test_no_loader_is_told_to_trust_what_it_finds():
    assert [file.name for file, node in nodes(ast.keyword) if node.arg == "trust_remote_code"] == []


def test_processes_are_started_for_pip_compilers_and_templates_alone_and_without_a_shell():
    started = [(file.name, node) for file, called, node in calls() if called.startswith("subprocess.")]
    assert [name for name, _ in started] == ["compiler.py", "isolation.py", "package_index.py"]
    for _, node in started:
        assert ast.unparse(node.args[0]).startswith(("[sys.executable, '-", "[sys.executable, *", "command"))
    assert [file.name for file, node in nodes(ast.keyword) if node.arg == "shell"] == []
