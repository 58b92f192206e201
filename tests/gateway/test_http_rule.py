"""Path templates: what is parsed, what is matched, and in which order."""

import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_gateway.http_rule import (
    ANY,
    REST,
    Match,
    NoMatch,
    PathError,
    Router,
    Template,
    TemplateError,
    parse_template,
)

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)
LITERALS = st.from_regex(r"[A-Za-z0-9._~-]{1,6}", fullmatch=True)
VALUES = st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable() or "\x00" in text)


@st.composite
def templates(draw: st.DrawFn) -> str:
    """Texts of templates, variables with unique names."""
    count = draw(st.integers(1, 5))
    names = iter(draw(st.lists(NAMES, min_size=count, max_size=count, unique=True)))
    parts: list[str] = []
    for index in range(count):
        choices = ["literal", "variable", "named"]
        if index == count - 1:
            choices.append("rest")
        match draw(st.sampled_from(choices)):
            case "literal":
                parts.append(draw(LITERALS))
            case "variable":
                parts.append(f"{{{next(names)}}}")
            case "named":
                parts.append(f"{{{next(names)}={draw(LITERALS)}/*}}")
            case _:
                parts.append(f"{{{next(names)}=**}}")
    verb = draw(st.sampled_from(["", ":cancel", ":run"]))
    return "/" + "/".join(parts) + verb


def expand(template: Template, values: list[str]) -> str:
    """A path the template matches, its wildcards filled in turn and encoded as clients do."""
    filled = iter(values)
    parts = [urllib.parse.quote(next(filled), safe="") if part in (ANY, REST) else part for part in template.segments]
    return "/" + "/".join(parts) + (f":{template.verb}" if template.verb else "")


def find(router: Router[str], method: str, path: str) -> str:
    found = router.find(method, path)
    assert isinstance(found, Match), path
    return found.target


@given(templates(), st.lists(VALUES, min_size=5, max_size=5))
def test_what_a_client_expands_is_matched_and_read_back(text: str, values: list[str]) -> None:
    template = parse_template(text)
    router: Router[str] = Router()
    router.add("GET", template, text)
    found = router.find("GET", expand(template, values))
    assert isinstance(found, Match)
    filled = iter(values)
    read = found.variables()
    assert set(read) == {variable.field_path for variable in template.variables}
    for variable in template.variables:
        parts = template.segments[variable.start : variable.end]
        wanted = "/".join(next(filled) if part in (ANY, REST) else part for part in parts)
        got = read[variable.field_path]
        # In what may span segments an encoded slash stays encoded, so that it is no separator.
        assert got == wanted or (variable.multiple and got.replace("%2F", "/") == wanted)


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    try:
        template = parse_template(text)
    except TemplateError:
        return
    except PathError:
        return
    assert template.segments


@given(st.text(max_size=200), st.lists(templates(), max_size=6))
def test_no_path_breaks_the_router(path: str, texts: list[str]) -> None:
    router: Router[str] = Router()
    for text in texts:
        try:
            router.add("GET", parse_template(text), text)
        except TemplateError:
            continue
    found = router.find("GET", "/" + path)
    if isinstance(found, Match):
        try:
            found.variables()
        except PathError:
            return


@given(templates())
def test_one_shape_twice_is_refused(text: str) -> None:
    router: Router[str] = Router()
    template = parse_template(text)
    router.add("GET", template, "first")
    router.add("POST", template, "other method")
    with pytest.raises(TemplateError):
        router.add("GET", parse_template(text), "second")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1",
        "/",
        "/v1/",
        "/v1//a",
        "/{a",
        "/{a}b",
        "/{}",
        "/{1}",
        "/{a=}",
        "/{a={b}}",
        "/**/a",
        "/{a=**}/b",
        "/a:",
        "/a:b:c",
        "/{a}/{a}",
        "/a b",
        "/ä",
        "/%2A",
        "/a?b",
    ],
)
def test_bad_templates_are_refused(text: str) -> None:
    with pytest.raises(TemplateError):
        parse_template(text)


def test_two_names_for_the_same_paths_are_refused() -> None:
    router: Router[str] = Router()
    router.add("GET", parse_template("/v1/{a}/x"), "a")
    with pytest.raises(TemplateError, match="same paths"):
        router.add("GET", parse_template("/v1/{b=*}/x"), "b")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/things", "list"),
        ("/v1/%74hings", "list"),
        ("/v1/things/special", "special"),
        ("/v1/things/other", "get"),
        ("/v1/things/a%3Ab", "get"),
        ("/v1/things/other:cancel", "cancel"),
        ("/v1/things:batch", "batch"),
        ("/v1/things/a:b/parts", "parts"),
        ("/v1/things/a/files", "files"),
        ("/v1/things/a/files/b/c:d", "files"),
        ("/v1/things/a/files/b/c:sum", "sum"),
        ("/v1/things/a/files/one", "one"),
    ],
)
def test_a_literal_goes_before_a_wildcard(path: str, target: str) -> None:
    assert find(example(), "GET", path) == target


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/things/",
        "/v1/things//parts",
        "/v1/things/a:nothing",
        "/v1/things/a/b",
        "v1/things",
        "/v1/things:",
        "/v1/:batch",
    ],
)
def test_what_fits_nothing_is_not_found(path: str) -> None:
    assert example().find("GET", path) == NoMatch(frozenset())


def test_other_methods_are_told() -> None:
    router = example()
    router.add("POST", parse_template("/v1/things/{id}"), "post")
    assert find(router, "POST", "/v1/things/special") == "post", "a literal without the method does not hide it"
    assert find(router, "HEAD", "/v1/things/special") == "special"
    assert router.find("PUT", "/v1/things/special") == NoMatch(frozenset({"GET", "HEAD", "POST"}))


def example() -> Router[str]:
    router: Router[str] = Router()
    for name, text in {
        "list": "/v1/things",
        "batch": "/v1/things:batch",
        "get": "/v1/things/{id}",
        "special": "/v1/things/special",
        "cancel": "/v1/things/{id}:cancel",
        "parts": "/v1/things/{id}/parts",
        "files": "/v1/things/{id}/files/{path=**}",
        "sum": "/v1/things/{id}/files/{path=**}:sum",
        "one": "/v1/things/{id}/files/one",
    }.items():
        router.add("GET", parse_template(text), name)
    return router


def test_what_spans_segments_keeps_encoded_slashes() -> None:
    found = example().find("GET", "/v1/things/a%2Fb/files/c%2Fd/e%20f")
    assert isinstance(found, Match)
    assert found.variables() == {"id": "a/b", "path": "c%2Fd/e f"}
