"""No template runs for ever, eats the memory or reaches Python."""

import pytest

from elm_jax.errors import UserError
from elm_jax.prompting import limits, sandbox
from elm_jax.prompting.templates import Template

GROW = "{{% set n = namespace(s='ab', l=['ab']) %}}{{% for i in range(60) %}}{}{{% endfor %}}{{{{ n.l }}}}"

ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop over a list that grows": "{% set l = [1] %}{% for x in l %}{{ l.append(x) or '' }}{% endfor %}",
    "a loop whose test is never true": (
        "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}"
    ),
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
    "a range": "{{ range(10 ** 9) | list }}",
}
LARGE = {
    "a product": "{{ 'a' * 10 ** 10 }}",
    "a list's product": "{{ [0] * 10 ** 9 }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "doubling by *": (
        "{% set n = namespace(s=9) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}"
    ),
    "a width": "{{ '%999999999d' % 1 }}",
    "a width in the filter": "{{ '%999999999d' | format(1) }}",
    "a width from a value": "{{ '%*d' % (999999999, 1) }}",
    "a width in a format": "{{ '{:999999999}'.format(1) }}",
    "a nested width in a format": "{{ '{:{}}'.format(1, 999999999) }}",
    "a padding": "{{ 'x'.ljust(10 ** 9) }}",
    "a padding filter": "{{ 'x' | center(999999999) }}",
    "a replacement": "{{ ('ab' * 9999).replace('a', 'c' * 9999) }}",
    "a replacement filter": "{{ ('ab' * 9999) | replace('a', 'c' * 9999) }}",
    "a join": "{{ range(9999) | join('x' * 9999) }}",
    "doubling by ~": GROW.format("{% set n.s = n.s ~ n.s %}"),
    "doubling by +": GROW.format("{% set n.s = n.s + n.s %}"),
    "doubling by join": GROW.format("{% set n.s = [n.s, n.s] | join %}"),
    "doubling by a method": GROW.format("{% set n.s = n.s.replace('a', 'aa') %}"),
    "doubling by extend": GROW.format("{{ n.l.extend(n.l) or '' }}"),
    "doubling by nesting": GROW.format("{% set n.l = [n.l, n.l] %}"),
    "doubling by a block": GROW.format("{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}"),
}
PYTHON = {
    "classes": "{{ ''.__class__.__mro__ }}",
    "classes by subscript": "{{ ''['__class__'] }}",
    "classes by filter": "{{ '' | attr('__class__') }}",
    "classes by format": "{{ '{0.__class__}'.format(1) }}",
    "globals": "{{ range.__globals__ }}",
    "a generator's frame": "{{ ([1] | map('string')).gi_frame }}",
    "other files": "{% include 'secrets.txt' %}",
    "imports": "{% import 'os' as os %}{{ os }}",
}


@pytest.mark.parametrize("source", [*ENDLESS.values(), *LARGE.values()], ids=[*ENDLESS, *LARGE])
@pytest.mark.parametrize("truncate", [2048, None])
def test_a_template_that_runs_away_ends_in_an_error(source, truncate, monkeypatch):
    # A hundredth of the real budget: without a guard none of these would end at all.
    monkeypatch.setattr(limits, "MAX_SIZE", 20_000)
    monkeypatch.setattr(sandbox.Rendering, "budget", 20_000)
    if truncate and source == LARGE["doubling by a block"]:
        source += source  # each half is cut
    with pytest.raises(UserError, match="Template 'runaway'"):
        Template("runaway", "id", source + "||| t").render({}, truncate)


@pytest.mark.parametrize("source", PYTHON.values(), ids=PYTHON)
def test_a_template_does_not_reach_python(source):
    with pytest.raises(UserError, match="expected it to render"):
        Template("curious", "id", source + "||| t").render({}, None)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for i in range(500) %}{{ i }} {% endfor %}", " ".join(map(str, range(500)))),
        ("{{ 'a' * 5 ~ 3 ~ 'b' }}", "aaaaa3b"),
        ("{{ '%05.1f' % 3.14159 }}", "003.1"),
        ("{{ '{}-{:>4}'.format(1, 'x') }}", "1-   x"),
        ("<{{ 'x' | center(5) }}>", "<  x  >"),
        ("{{ ('word ' * 9000) | replace('word', 'longer') | length }}", str(7 * 9000)),
        ("{{ 2 ** 10 + 7 % 4 }}", "1027"),
        ("{% for i in [3, 4, 5] if i > 3 %}{{ loop.index }}{{ i }}{% endfor %}", "1425"),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(1) }}{{ f(2) }}", "<1><2>"),
    ],
)
def test_the_limits_leave_ordinary_templates_alone(source, expected):
    assert Template("plain", "id", source + "||| t").render({}, None).input == expected
