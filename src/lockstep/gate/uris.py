"""Whether a URI has one reading: policy sees its text, and must not be passed by with another spelling of the same.

Pure. Source: RFC 3986, 6.2.2 (syntax-based normalization). Case in names and what a server itself takes for the same is
not known here.
"""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")
_PLAIN_ENCODED = re.compile(r"%(?:2d|2e|5f|7e|3[0-9]|[46][1-9a-f]|[57][0-9a])", re.IGNORECASE)
"""Characters that never need an encoding: letters, digits, `-`, `.`, `_`, `~`."""
_SEPARATOR = re.compile(r"/|%2f|\\|%5c", re.IGNORECASE)


def uri_problem(uri: str) -> str:
    """Why a URI could be read as another one, as a phrase; "" where it could not."""
    if _SCHEME.match(uri) is None:
        return "it does not begin with a scheme in lower case"
    if "\\" in uri or not uri.isprintable():
        return "it has a backslash, or characters that no URI has"
    if _PLAIN_ENCODED.search(uri):
        return "it has letters, digits or dots in percent-encoding"
    path = re.split(r"[?#]", uri.partition(":")[2].removeprefix("//"), maxsplit=1)[0]
    steps = _SEPARATOR.split(path)
    if any(step in (".", "..") for step in steps):
        return "it has the steps . or .. in its path"
    if uri.startswith("file:") and "" in steps[1:-1]:
        return "it has an empty step in its path"
    return ""
