"""Text that others wrote: how it is shown and stored, and what a name may be made of."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["name_fault", "printable", "skeleton", "storable"]

MAX_MARKS = 2  # combining marks in a row that a name may have: more cover what is around them

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories: controls, formats (bidi, zero-width), surrogates, private, unassigned, separators of lines and paragraphs."""

# Seen as nothing or as a blank, and of no category that says so: of Unicode's Default_Ignorable_Code_Point, and Braille's blank.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)

# Letters that are seen as Latin ones: of Unicode's confusables.txt those of Greek, Cyrillic, Armenian and of phonetic Latin.
_LIKE_LATIN = {
    "A": "\u0391\u0410", "B": "\u0392\u0412", "C": "\u0421", "E": "\u0395\u0415", "G": "\u050c", "H": "\u0397\u041d",
    "J": "\u0408", "K": "\u039a\u041a", "M": "\u039c\u041c", "N": "\u039d", "O": "\u039f\u041e\u0555",
    "P": "\u03a1\u0420", "Q": "\u051a", "S": "\u0405\u054f", "T": "\u03a4\u0422", "W": "\u051c", "X": "\u03a7\u0425",
    "Y": "\u03a5\u0423", "Z": "\u0396", "a": "\u03b1\u0430\u0251", "c": "\u0441\u03f2", "d": "\u0501", "e": "\u0435",
    "g": "\u0581\u0261", "h": "\u04bb\u0570", "i": "\u03b9\u0456\u0131", "j": "\u0458\u03f3", "k": "\u03ba\u043a",
    "l": "\u04cf\u0399\u0406\u04c0", "n": "\u0578", "o": "\u03bf\u043e\u0585", "p": "\u03c1\u0440", "q": "\u051b\u0566",
    "s": "\u0455", "u": "\u03c5\u057d", "v": "\u03bd\u0475", "w": "\u03c9\u051d\u0461", "x": "\u03c7\u0445",
    "y": "\u0443\u03b3",
}  # fmt: skip
_LATIN_OF = str.maketrans({like: latin for latin, all_like in _LIKE_LATIN.items() for like in all_like})
_READ_ALIKE = str.maketrans({"I": "l", "|": "l", "1": "l", "0": "o"})
_NEVER_BESIDE_LATIN = ("CHEROKEE", "COPTIC", "LISU")
"""Scripts most of whose letters are seen as Latin ones."""


def printable(text: str, keep: str = "") -> str:
    r"""Write what a terminal would obey, or nobody would see, as an escape such as ``\x1b`` or ``\u202e``.

    ``keep`` has characters that stay as they are, such as a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or _is_seen(c) else _escape(c) for c in text)


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN and not _INVISIBLE.match(character)


def _escape(character: str) -> str:
    code = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(
        character,
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}",
    )


def storable(text: str, most: int) -> str:
    """Return text that PostgreSQL takes: without NUL and lone surrogates, and at most ``most`` characters."""
    return text[:most].replace("\0", "").encode("utf-8", "backslashreplace").decode()[:most]


def name_fault(name: str) -> str | None:
    """Return what is wrong with a name, as a sentence; None where it can be told from others by eye.

    A name that is seen as another is a trap for who reads it.
    """
    for character in name:
        if not _is_seen(character) or (unicodedata.category(character) == "Zs" and character != " "):
            return f"It has the character U+{ord(character):04X}, which is not seen."
    if name != unicodedata.normalize("NFKC", name):
        return "It is not in Unicode's normal form NFKC."
    if name != " ".join(name.split(" ")).strip() or "  " in name:
        return "It has a blank at an end, or two in a row."
    marks = 0
    for position, character in enumerate(name):
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if marks > (MAX_MARKS if position >= marks else 0):
            return "It has combining marks without a letter, or too many in a row."
    if any(unicodedata.name(c, "").startswith("LATIN ") for c in name):
        for character in name:
            script = unicodedata.name(character, "").partition(" ")[0]
            if script in _NEVER_BESIDE_LATIN or (ord(character) in _LATIN_OF and script != "LATIN"):
                return f"It has the letter U+{ord(character):04X}, which is seen as a Latin one, beside Latin letters."
    return None


def skeleton(name: str) -> str:
    """Return what names that are seen alike have in common: case, forms of letters and lookalikes of Latin ones aside."""
    seen = unicodedata.normalize("NFKC", name).translate(_LATIN_OF).translate(_READ_ALIKE)
    return unicodedata.normalize("NFKC", seen.casefold()).translate(_READ_ALIKE)
