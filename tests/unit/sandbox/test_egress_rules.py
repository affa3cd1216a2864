from __future__ import annotations

import pytest

from lockstep.sandbox.contract import EgressRule
from lockstep.sandbox.egress_rules import address_is_open, fits, format_rule, parse_rule, parse_target, tunnels


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("api.example:443", EgressRule(scheme="https", host="api.example", port=443)),
        ("api.example:8080", EgressRule(scheme="http", host="api.example", port=8080)),
        ("http://API.example:443", EgressRule(scheme="http", host="api.example", port=443)),
        ("localhost:81 GET", EgressRule(scheme="http", host="localhost", port=81, methods=("GET",))),
        (
            "api.example:443 GET,POST /v1/search/",
            EgressRule(scheme="https", host="api.example", port=443, methods=("GET", "POST"), path_prefix="/v1/search"),
        ),
        ("https://[2001:DB8::1]:8443 /x", EgressRule(scheme="https", host="2001:db8::1", port=8443, path_prefix="/x")),
    ],
)
def test_a_rule_is_read_and_written_back(text: str, rule: EgressRule) -> None:
    assert parse_rule(text) == rule
    assert parse_rule(format_rule(rule)) == rule


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "host:port"),
        ("api.example", "no usable port"),
        ("api.example:0", "no usable port"),
        ("api.example:70000", "no usable port"),
        ("*.example:443", "wildcards"),
        ("api.example:*", "wildcards"),
        ("api.example:443 * /", "wildcards"),
        ("ftp://api.example:21", "http or https"),
        ("https://api.example:443/v1", "space before the path"),
        ("api.example:443 get", "not understood"),
        ("api.example:443 GET /a /b", "not understood"),
        ("api.example:443 GET /a?b=c", "matched safely"),
        ("api.example:443 GET /a/../b", "dot segments"),
        ("api.example:443 GET /a%2fb", "percent-encoding"),
        ("api.example:443 CONNECT", "CONNECT"),
        ("user@api.example:443", "not host:port"),
        ("2001:db8::1:443", "not host:port"),
        ("api.example.:443", "not a host name"),
        ("bücher.example:443", "not a host name"),
        ("127.1:80", "IPv4|octet|127.1"),
        ("0x7f000001:80", "0x7f000001"),
    ],
)
def test_a_wrong_rule_is_refused_in_one_sentence_that_says_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        parse_rule(text)
    assert "\n" not in str(refused.value)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/x", "/v1/x?y=/../z", "/%761/x", "/v1/x;a=b"])
def test_a_path_below_the_prefix_fits(path: str) -> None:
    assert fits(parse_rule("api.example:80 GET /v1"), "GET", parse_target(f"http://api.example{path}"))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1x",
        "/V1/x",
        "/v2",
        "/v1/../admin",
        "/v1/./x",
        "/v1/%2e%2e/admin",
        "/v1/.%2E/admin",
        "/v1/..;/admin",
        "/v1/..;a=b/admin",
        "/v1/%2e%2e%3b/admin",
        "/v1/%252e%252e/admin",
        "/v1%2fadmin",
        "/v1/..%2fadmin",
        "/v1/..%5cadmin",
        "/v1/..\\admin",
        "//v1/x",
        "/v1//x",
        "/v1/%c0%ae%c0%ae/admin",
        "/v1/%00",
        "/v1/%0d%0a",
        "/v1/%",
        "/v1/%zz",
        "/v1/.. /admin",
    ],
)
def test_a_path_that_leaves_the_prefix_or_could_be_read_in_two_ways_does_not_fit(path: str) -> None:
    try:
        target = parse_target(f"http://api.example{path}")
    except ValueError:
        return
    assert not fits(parse_rule("api.example:80 GET /v1"), "GET", target)


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("POST", "http://api.example/v1"),
        ("get", "http://api.example/v1"),
        ("GET", "https://api.example/v1"),
        ("GET", "http://api.example:81/v1"),
        ("GET", "http://api.example.evil.example/v1"),
        ("GET", "http://xapi.example/v1"),
    ],
)
def test_scheme_host_port_and_method_must_be_exactly_those_of_the_rule(method: str, url: str) -> None:
    assert not fits(parse_rule("api.example:80 GET /v1"), method, parse_target(url))


@pytest.mark.parametrize(
    "text",
    [
        "/v1",
        "api.example/v1",
        "http://user:secret@api.example/",
        "http://api.example\\@evil.example/",
        "http://api.example#@evil.example/",
        "http://api.example./",
        "http://[::1/",
        "http://api.example:/",
        "http://api.example:99999/",
        "http:///v1",
        "http://api.example/\u00e9",
        "http://127.1/",
        "file:///etc/passwd",
        "*",
    ],
)
def test_a_target_that_is_no_plain_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"target|host|port|octet|digit|IP"):
        parse_target(text)


def test_a_tunnel_needs_a_rule_for_https_without_method_and_path() -> None:
    assert tunnels(parse_rule("api.example:443"), "api.example", 443)
    assert not tunnels(parse_rule("api.example:443 GET"), "api.example", 443)
    assert not tunnels(parse_rule("api.example:443 /v1"), "api.example", 443)
    assert not tunnels(parse_rule("api.example:443"), "api.example", 444)
    assert not tunnels(parse_rule("api.example:80"), "api.example", 80)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *("240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "fec0::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "198.18.0.1"),
    ],
)
def test_an_address_that_is_not_public_is_closed_unless_the_rule_names_it(address: str) -> None:
    assert not address_is_open("api.example", address)
    assert not address_is_open("192.0.2.7", address)
    assert address_is_open(address.partition("%")[0], address)


def test_public_addresses_are_open_and_localhost_means_loopback_only() -> None:
    assert address_is_open("api.example", "93.184.216.34")
    assert address_is_open("api.example", "2606:2800:220:1::1")
    assert address_is_open("localhost", "127.0.0.1")
    assert address_is_open("localhost", "::1")
    assert not address_is_open("localhost", "10.0.0.1")
    assert not address_is_open("localhost", "93.184.216.34")
