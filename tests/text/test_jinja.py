"""What templates do with texts whose characters are traced: the same as with plain ones."""

import pytest
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llm_jax.core.errors import InputError
from llm_jax.text import Bytes, Jinja, Message, jinja
from llm_jax.text.traced import OTHER, TEMPLATE, UNKNOWN, Traced, content_of, origins

CONTENT = " ab<c> \nsecond LINE ß, 12\n"
ARGUMENTS = dict(
    attr="('x')", batch="(2) | list", center="(40)", default="('x')", format="()", groupby="('x')", indent="(2, true)",
    join="('+')", map="('upper') | list", replace="('b', 'xyz')", round="(1)", select="('lower')", reject="('lower')",
    selectattr="('x')", rejectattr="('x')", slice="(2) | list", sum="('')", truncate="(9)",
    unique="() | list", wordwrap="(5)", xmlattr="()", urlize="(9)",
)  # fmt: skip
OTHERWISE = {
    "random",
    "dictsort",
    "items",
    "xmlattr",
    "filesizeformat",
    "pprint",
}  # not of a text, or not the same twice
SAID = [f"c | {name}{ARGUMENTS.get(name, '')}" for name in sorted(FILTERS.keys() - OTHERWISE)]
SAID += [
    "c + 'x'", "'x' + c", "'x' ~ c ~ 1", "c * 2", "2 * c", "c[2:-3]", "c[::-1]", "c[1]", "c == d", "c < d", "'ab' in c",
    "c.strip().split()", "c.split('\\n', 1)[0]", "c.rsplit(' ', 1)", "c.splitlines()", "c.partition('b')",
    "c.replace('a', '').lstrip()", "c.startswith(' ab')", "c.endswith('x')", "c.find('b')", "c.count('n')", "c.title()",
    "c.removeprefix(' ')", "'%s-%s' % (c, 1)", "'{}-{:>30}'.format(c, c)", "c.join(['1', '2'])", "'|'.join([c, c])",
    "c.encode()", "c.zfill(40)", "c.center(40, '*')", "c is string", "c is sequence", "c is mapping", "c if c else 'x'",
    "[c, c] | join", "[c, 'x'] | join('-')", "{'k': c} | tojson", "(c | e) + c", "c + (c | e)",
    "c | trim | upper | list", "c | list | last", "dict(k=c).k", "namespace(k=c).k", "(c ~ '') is eq(c)",
]  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_what_is_written_is_what_plain_text_would_be(said):
    source = f"{{{{ {said} }}}}"
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    plain.filters["tojson"] = lambda value, **_: str(jinja.to_json(value, None, None, False))
    try:
        expected = plain.from_string(source).render(c=CONTENT, d="ab")
    except Exception:
        expected = None
    tokens = dict(c=Traced(CONTENT, content_of(0)), d=Traced("ab", OTHER))
    try:
        written = jinja.write(source, [], False, tokens)
    except InputError:
        written = None
    assert written == expected
    if written is not None:  # and a letter that only the content has is not taken for the template's
        assert all(origins(written)[at] != chr(TEMPLATE) for at in range(len(written)) if str(written[at]) in "ßN")


@pytest.mark.parametrize(
    "block",
    [
        "{% set x %}<{{ c }}>{% endset %}{{ x }}",
        "{% macro m(v) %}<{{ v }}>{% endmacro %}{{ m(c) }}",
        "{% generation %}<{{ c }}>{% endgeneration %}",
        "{% filter trim %}<{{ c }}>{% endfilter %}",
        "{% for each in [c] %}<{{ each }}>{% endfor %}",
        "{% set ns = namespace(t='') %}{% for _ in [1] %}{% set ns.t = ns.t + '<' ~ c ~ '>' %}{% endfor %}{{ ns.t }}",
        "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}{{ c }}{% endcall %}",
    ],
)
def test_blocks_keep_where_each_character_is_from(block):
    written = jinja.write(block, [], False, dict(c=Traced("<ab>", content_of(0))))
    assert written == "<<ab>>"
    assert [*map(ord, origins(written))] == [TEMPLATE] + 4 * [content_of(0)] + [TEMPLATE]


def test_what_is_not_followed_is_unknown_and_spells_no_token():
    written = jinja.write("{{ '<%s>' % c }}{{ 12 }}", [], False, dict(c=Traced("ab", content_of(0))))
    assert [*map(ord, origins(written))] == 4 * [UNKNOWN] + 2 * [TEMPLATE]
    ours = Bytes().train([]).having({"<x>": 5})
    with pytest.raises(InputError, match="makes '<x>' in a way in which its own special tokens cannot be told"):
        Jinja("{{ '<%s>' % messages[0].content }}").render(ours, [Message("user", "x")])
    assert 5 not in Jinja("{{ '<' + messages[0].content + '>' }}").render(ours, [Message("user", "x")])[0]
    assert Jinja("{{ '<' + 'x' }}{{ '>' }}{{ messages[0].content }}").render(ours, [Message("user", "x")])[0][0] == 5


def test_the_sandbox_still_holds():
    for source in ("{{ c._origin }}", "{{ c.__class__ }}", "{{ c.strip.__func__ }}", "{{ '{0._origin}'.format(c) }}"):
        try:
            written = jinja.write(source, [], False, dict(c=Traced("ab", OTHER)))
        except InputError:
            continue
        assert written == ""
