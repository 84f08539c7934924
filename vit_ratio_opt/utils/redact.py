"""Show texts without the passwords, keys and tokens of the URLs in them."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus

__all__ = ["redact", "remember_secret"]

_URL = re.compile(r"([A-Za-z][\w+.-]*)://(.*)", re.ASCII)
_BACKENDS = ("postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql", "cockroachdb")
_USER = re.compile(r"[\w.%+~-]*", re.ASCII)
_PLACE = re.compile(r"(\[[^\]@]*\]|[^:/@\[]*)(:\d{0,5})?(/[^@]*)?")
_SHOWN_ENTRY = re.compile(r"(host|port)=[\w.,:/%\[\]-]*", re.ASCII)
# An entry of a libpq connection string, or of a dictionary of a driver's arguments.
_SECRET_ENTRY = re.compile(
    r"(?i)\b(\w*(?:password|passwd|passphrase|passfile|pwd|secret|token|sslkey|sslcert"
    r"|access_key\w*)[\"']?)(\s*[=:]\s*)"
    r"('(?:[^'\\]|\\.)*'?|\"(?:[^\"\\]|\\.)*\"?|[^\s&,;)}\]]+)"
)
_SHORTEST_SECRET = 4  # a shorter one would be struck out everywhere
_secrets: set[str] = set()


def redact(text: str) -> str:
    """Return a text without secrets: of a URL's query only host and port are left.

    Of a database's URL the user name is left too. Where a ``@`` or a ``?`` may belong to a
    password that was not percent-encoded, nothing is left. A line is taken for a URL from ``://``
    to its end, since passwords may hold spaces; after a URL without secrets it goes on.
    """
    lines = [_URL.sub(_redacted_url, line) for line in str(text).split("\n")]
    shown = _SECRET_ENTRY.sub(r"\1\2***", "\n".join(lines))
    for secret in sorted(_secrets, key=len, reverse=True):
        shown = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", shown)
    return shown


def _redacted_url(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    words = rest.split(maxsplit=1)
    url = words[0].rstrip(".,;:'\")") if words and rest.startswith(words[0]) else ""
    tail = rest[len(url) :]
    if (
        "@" not in tail.partition("://")[0]
        and _without_secrets(scheme, url) == f"{scheme}://{url}"
    ):
        return f"{scheme}://{url}{_URL.sub(_redacted_url, tail)}"
    return _without_secrets(scheme, rest)


def _without_secrets(scheme: str, rest: str) -> str:
    if scheme.startswith("sqlite"):
        file, mark, _ = rest.partition("?")
        return f"{scheme}://{file}{'?***' if mark else ''}"
    head, mark, query = rest.partition("?")
    if "@" in query and (":" in head or "@" in head or "/" not in head):
        return f"{scheme}://***"
    login, at, place = head.rpartition("@")
    if not _PLACE.fullmatch(place):
        place = "***"
    user, colon, _ = login.partition(":")
    if not scheme.startswith(_BACKENDS) or not _USER.fullmatch(user):
        user, colon = "***", ""
    if at:
        place = f"{user}{':***' if colon else ''}@{place}"
    if not mark:
        return f"{scheme}://{place}"
    entries = query.split("&")
    shown = [entry for entry in entries if _SHOWN_ENTRY.fullmatch(entry)]
    shown += ["***"] if len(shown) < len(entries) else []
    return f"{scheme}://{place}?{'&'.join(shown)}"


def remember_secret(value: str) -> None:
    """Remember a secret, so that :func:`redact` removes it from the messages of drivers.

    Args:
        value: The secret; one of less than four characters is ignored.
    """
    if len(value) >= _SHORTEST_SECRET:
        _secrets.update((value, quote(value), quote_plus(value), repr(value)[1:-1]))
