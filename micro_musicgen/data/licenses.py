"""Licences by one name each, however a tag, a web address or a table spells them."""

from __future__ import annotations

import re

UNKNOWN = "unknown"
_DEED = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/(\d\.\d))?")
_WORDS = (
    (r"creative\s*commons", "cc"),
    (r"attribution", "cc by"),
    (r"non\W?commercial", "nc"),
    (r"share\W?alike", "sa"),
    (r"no\W?deriv(?:ative)?(?:s|\b)(?: works)?", "nd"),
)
_SPELLED = re.compile(r"(?:cc )+(by(?: nc)?(?: sa| nd)?)(?: v?(\d\.\d))?(?: [a-z]{2,13})?")
_FREE = re.compile(r"(?:cc ?)+(?:zero|0)(?: v?1\.0)?(?: universal)?")


def license_id(text: str) -> str | None:
    """Gives the name that the Hub uses (`cc0-1.0`, `cc-by-4.0`, `cc-by-nc-sa-3.0`), None for what is none of them.

    Knows the Creative Commons family by name, abbreviation or address, also where the address stands in a sentence.
    Without a version the name has none: `cc-by`.
    """
    lowered = text.casefold()
    deed = _DEED.search(lowered)
    if deed is not None:
        group, name, number = deed.groups()
        if group == "publicdomain":
            return "cc0-1.0" if name == "zero" else "public-domain"
        return _joined(name, number)
    for pattern, word in _WORDS:
        lowered = re.sub(pattern, f" {word} ", lowered)
    plain = " ".join(re.findall(r"[a-z0-9]+(?:\.[0-9]+)?", lowered)).removesuffix(" license").removesuffix(" licence")
    if plain in ("public domain", "publicdomain", "cc public domain", "cc pd"):
        return "public-domain"
    if _FREE.fullmatch(plain):
        return "cc0-1.0"
    spelled = _SPELLED.fullmatch(plain)
    return None if spelled is None else _joined(spelled[1].replace(" ", "-"), spelled[2])


def _joined(terms: str, number: str | None) -> str:
    return f"cc-{terms}-{number}" if number else f"cc-{terms}"


def is_among(found: str, wanted: str) -> bool:
    """Says whether the licence `found` is what `wanted` asks for: the same, or a version of it where it names none.

    `cc-by` takes cc-by-4.0 and cc-by-3.0, and never cc-by-nc-4.0.
    """
    have, ask = (license_id(text) or text.casefold().strip() for text in (found, wanted))
    return have == ask or re.sub(r"-\d\.\d$", "", have) == ask
