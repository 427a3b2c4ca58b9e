from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrouter.config import rules
from wsrouter.config.faults import BadValue
from wsrouter.config.rules import TunnelMatch
from wsrouter.config.values import TEMPLATE_FIELDS, Match, PathKind, Redirect


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tls", TunnelMatch(Match.TLS)),
        (
            "tls  sni=App.example.com,*.apps.example.com,bücher.example alpn=h2,http/1.1",
            TunnelMatch(
                Match.TLS,
                ("app.example.com", "*.apps.example.com", "xn--bcher-kva.example"),
                ("h2", "http/1.1"),
            ),
        ),
        ("tls sni=a.example,A.example", TunnelMatch(Match.TLS, ("a.example",))),
        ("http", TunnelMatch(Match.HTTP)),
        ("opaque", TunnelMatch(Match.OPAQUE)),
        ("silence", TunnelMatch(Match.SILENCE)),
        ("any", TunnelMatch(Match.ANY)),
    ],
)
def test_a_match_is_a_kind_and_for_tls_its_names_and_protocols(text: str, expected: TunnelMatch) -> None:
    assert rules.tunnel_match(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tsl", "unknown value 'tsl' (known: tls, http, opaque, silence, any)"),
        ("http sni=a", "'sni' goes with 'tls' only, not with 'http'"),
        ("tls sny=a", "unknown word 'sny=a' (did you mean 'sni=...'?)"),
        ("tls zz", "unknown word 'zz' (known: sni=NAME,... and alpn=PROTOCOL,...)"),
        ("tls sni=a sni=b", "'sni' is given twice"),
        ("tls sni=a,,b", "'' is not a host name"),
        ("tls sni=10.0.0.1", "SNI holds host names only"),
        ("tls alpn=", "is not an ALPN protocol"),
    ],
)
def test_what_is_no_match_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        rules.tunnel_match(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("/", PathKind.PREFIX, "/"),
        ("/wsapp/x%2Fy", PathKind.PREFIX, "/wsapp/x%2Fy"),
        ("= /x", PathKind.EXACT, "/x"),
        ("=/x", PathKind.EXACT, "/x"),
        (r"~ ^/v\d+/", PathKind.REGEX, r"^/v\d+/"),
    ],
)
def test_a_path_is_a_prefix_exact_or_a_pattern(text: str, kind: PathKind, expected: str) -> None:
    rule = rules.path_rule(text)
    assert (rule.kind, rule.text) == (kind, expected)
    assert (rule.regex is not None) is (kind is PathKind.REGEX)


def test_a_pattern_is_compiled() -> None:
    regex = rules.path_rule(r"~ ^/v\d+/").regex
    assert regex is not None
    assert regex.search("/v12/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "'x' is not a path"),
        ("=", "'' is not a path"),
        ("/a?b", "is not a path"),
        ("/a b", "is not a path"),
        ("/ü", "other characters percent-encoded"),
        ("/%zz", "is not a path"),
        ("/a/../b", "holds '.' or '..'"),
        ("= /.", "holds '.' or '..'"),
        ("/%7euser", "holds '%7e' (requests are routed with it decoded: write '~')"),
        ("/a%2fb", "holds '%2f' (requests are routed with '%2F')"),
        ("~", "the regular expression after '~' is missing"),
        ("~ (", "'(' is not a regular expression (missing ), unterminated subpattern at position 0)"),
        ("~ a{99999999999999999999}", "is not a regular expression"),
    ],
)
def test_a_path_that_could_never_match_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        rules.path_rule(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "plain", "{client_ip}", "{{client_ip}}", "a{host}:{client_port}b", "{{{sni}}}", "}}{{"]
)
def test_a_template_comes_out_unchanged(text: str) -> None:
    assert rules.template(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a lone '{' in '{' (write '{{' for a brace)"),
        ("a}b", "a lone '}'"),
        ("{clientip}", "unknown placeholder '{clientip}' (did you mean '{client_ip}'?)"),
        ("{zzzz}", "unknown placeholder '{zzzz}' (known: client_ip, "),
        ("{}", "unknown placeholder '{}'"),
        ("{client_ip!r}", "unknown placeholder"),
        ("{{{", "a lone '{'"),
    ],
)
def test_an_unknown_placeholder_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        rules.template(text)
    assert message in str(caught.value)


@given(st.lists(st.sampled_from([*(f"{{{word}}}" for word in TEMPLATE_FIELDS), "{{", "}}", "x"])))
def test_any_sequence_of_placeholders_and_doubled_braces_is_a_template(parts: list[str]) -> None:
    assert rules.template("".join(parts)) == "".join(parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://example.com/x", Redirect(302, "https://example.com/x")),
        ("308   https://{host}{uri}", Redirect(308, "https://{host}{uri}")),
        ("301 /new", Redirect(301, "/new")),
        ("/", Redirect(302, "/")),
        ("/new{path}", Redirect(302, "/new{path}")),
    ],
)
def test_a_redirect_is_a_status_and_a_target(text: str, expected: Redirect) -> None:
    assert rules.redirect(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("300 /x", "unknown status '300' (known: 301, 302, 303, 307, 308)"),
        ("302", "'' is not a target"),
        ("302 a b", "is not a URL"),
        ("/ü", "is not a URL"),
        ("//evil.example", "'//evil.example' is not a target"),
        ("/\\evil.example", "is not a target"),
        ("/{path}", "is not a target"),
        ("/{uri}", "is not a target"),
        ("ftp://x", "is not a target"),
        ("http:///x", "is not a target"),
        ("javascript:x", "is not a target"),
        ("/{hots}", "did you mean '{host}'?"),
    ],
)
def test_a_redirect_to_elsewhere_than_the_web_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        rules.redirect(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("X-Real-IP: {client_ip}", ("X-Real-IP", "{client_ip}")),
        ("Host:backend.example", ("Host", "backend.example")),
        ("Cookie:", ("Cookie", "")),
        ("X-A: ü", ("X-A", "ü")),
        ("X-A: b: c\td", ("X-A", "b: c\td")),
    ],
)
def test_a_header_rule_is_a_name_and_a_template(text: str, expected: tuple[str, str]) -> None:
    assert rules.header_rule(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X-Real-IP {client_ip}", "is not a header"),
        ("X Real: a", "'X Real' is not a token"),
        (": a", "is not a token"),
        ("connection: close", "the header 'connection' belongs to the router"),
        ("Upgrade: x", "belongs to the router"),
        ("Sec-WebSocket-Key: x", "belongs to the router"),
        ("Content-Length: 5", "belongs to the router"),
        ("Transfer-Encoding:", "belongs to the router"),
        ("Host:", "cannot be taken away"),
        ("X-A: a\rb", "is not the value of a header"),
        ("X-A: a\nb", "is not the value of a header"),
        ("X-A: a\0b", "is not the value of a header"),
        ("X-A: a\u2028b", "expected printable text"),
        ("X-A: {clientip}", "did you mean '{client_ip}'?"),
    ],
)
def test_what_could_break_a_request_is_no_header_rule(text: str, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        rules.header_rule(text)
    assert message in str(caught.value)


@given(st.text(min_size=1).filter(lambda text: text.strip() == text))
def test_any_text_is_a_value_or_a_bad_value(text: str) -> None:
    for parse in (rules.tunnel_match, rules.path_rule, rules.redirect, rules.header_rule, rules.template):
        for written in (text, f"tls {text}", f"~ {text}", f"302 {text}", f"X-A: {text}"):
            try:
                parse(written)
            except BadValue:
                pass
