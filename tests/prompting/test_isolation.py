"""Templates of strangers end, whatever they do, and ordinary ones render as they do in this process."""

import os

import pytest

from elm_jax.errors import UserError
from elm_jax.prompting import isolation, render
from elm_jax.prompting.template_files import load_templates
from elm_jax.prompting.templates import Template
from elm_jax.tasks import mini

GROW = "{{% set n = namespace(b='ab') %}}{{% for i in range(90) %}}{}{{% endfor %}}"
LONG = "{{% set l = range(99999) | list %}}{{% for i in range(90000) %}}{}{{% endfor %}}"
RUNAWAYS = {
    "bytes that double": GROW.format("{% set n.b = (n.b ~ '').encode() %}{% set n.b = n.b + n.b %}"),
    "bytes of a number": "{{ (1).to_bytes(9999999999, 'big') }}",
    "a large width of bytes": "{{ 'x'.encode().ljust(9999999999) }}",
    "a list that grows in front": "{% set l = [1] %}{% for x in l %}{{ l.insert(0, x) or '' }}{% endfor %}",
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "searches": LONG.format("{% if -1 in l %}{% endif %}"),
    "sums": LONG.format("{% set x = l | sum %}"),
    "sorting": LONG.format("{% set x = l | sort(reverse=true) %}"),
    "counting": LONG.format("{% set x = l.count(-1) %}"),
    "reversing": LONG.format("{% set x = l.reverse() %}"),
    "long divisions": LONG.format("{% set x = (7 ** 3500) // (3 ** 2000) %}"),
    "lists that are compared": (
        "{% set n = namespace(a=1, b=1) %}{% for i in range(60) %}"
        "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% set x = n.a == n.b %}{% endfor %}"
    ),
    "splitting": "{% set t = 'a ' * 900000 %}{% for i in range(9999) %}{% set x = t.split() %}{% endfor %}",
    "upper case": "{% set t = 'ß' * 900000 %}{% for i in range(9999) %}{% set x = t.upper() %}{% endfor %}",
    "nesting": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}


@pytest.fixture
def strict(monkeypatch):
    """The process with a second and 128 MiB."""
    process = isolation.TemplateProcess(seconds=1, memory_bytes=1 << 27)
    monkeypatch.setattr(isolation, "_shared_process", lambda: process)
    yield process
    process.stop()


@pytest.mark.parametrize("source", RUNAWAYS.values(), ids=RUNAWAYS)
def test_a_strangers_template_ends_within_its_time_and_memory(source, strict):
    template = Template("runaway", "id", source + " ||| t", foreign=True)
    with pytest.raises(UserError, match="Template 'runaway'"):
        template.render({}, None)
    fine = Template("fine", "id", "{{ a }} ||| b", foreign=True)
    assert fine.render({"a": "still here"}).input == "still here"


def test_choices_and_columns_of_a_strangers_template_are_found_in_the_process_too(strict):
    bomb = "{{ 'x'.encode().ljust(9999999999) }}"
    with pytest.raises(UserError, match="Template 'runaway'"):
        _ = Template("runaway", "id", "a ||| b", bomb, foreign=True).fixed_choices
    assert Template("t", "id", "{{ a }} ||| {{ b }}", foreign=True).columns == {"a", "b"}


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 600])
def test_rows_render_there_as_they_do_here(count):
    fields = ("t", "id", "{{ text }}{{ [1, 2, 3] | choice }} ||| {{ answer_choices[label] }}", "no ||| yes")
    rows = [{"row_id": str(n), "text": f"é{n} |||", "label": n % 2, "more": (1, None)} for n in range(count)]
    assert render.render(rows, Template(*fields, foreign=True)) == render.render(rows, Template(*fields))


def test_an_error_there_is_the_error_here():
    rows = [{"text": "a"}, {"other": 1}]
    found = []
    for foreign in (True, False):
        with pytest.raises(UserError) as caught:
            render.render(rows, Template("t", "id", "{{ text }} ||| {{ absent }}", foreign=foreign))
        found.append((type(caught.value), str(caught.value)))
    assert found[0] == found[1]


def test_rows_that_cannot_travel_are_refused():
    with pytest.raises(UserError, match="plain values"):
        Template("t", "id", "{{ a }} ||| b", foreign=True).render({"a": lambda: 1})


def test_the_process_has_no_tokens_of_its_parent(strict, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    Template("t", "id", "a ||| b", foreign=True).render({})
    with open(f"/proc/{strict._process.pid}/environ", "rb") as file:
        assert b"secret" not in file.read()


def test_what_the_process_writes_is_checked(strict):
    for content in (b"V" + (2).to_bytes(8, "little") + b"[]", b"V" + b"\xff" * 8, b"rubbish"):
        Template("t", "id", "a ||| b", foreign=True).render({})
        real, (read, write) = strict._process.stdout, os.pipe()
        os.write(write, content)
        os.close(write)
        strict._process.stdout = open(read, "rb")  # noqa: SIM115, closed by `stop`
        with pytest.raises(UserError):
            Template("t", "id", "a ||| b", foreign=True).render({})
        strict.stop()
        real.close()


def test_templates_are_strangers_unless_they_come_with_the_package_or_from_promptsource(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("ELM_JAX_CACHE", str(tmp_path))
    text = "templates:\n  a: !Template\n    {name: a, id: a, jinja: x ||| y}\n"
    for folder in ("promptsource/0.2.3/templates", "elsewhere"):
        (tmp_path / folder / "set").mkdir(parents=True)
        (tmp_path / folder / "set" / "templates.yaml").write_text(text)
    assert load_templates(tmp_path / "elsewhere", "set")["a"].foreign
    assert not load_templates(tmp_path / "promptsource/0.2.3/templates", "set")["a"].foreign
    own = next(mini.PROMPTS_DIR.iterdir()).name
    assert not any(template.foreign for template in load_templates(mini.PROMPTS_DIR, own).values())
