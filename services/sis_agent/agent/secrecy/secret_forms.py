"""The forms in which a secret is recognised: as it is, and as common tools encode, escape and quote it."""

from __future__ import annotations

import base64
import itertools
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Final

MIN_FORM_BYTES: Final = 6
"""Shorter forms are no evidence of a secret; they would mask innocent text."""
MIN_LINE_BYTES: Final = 8
"""Shorter lines of a secret of several lines are not recognised by themselves, as a secret of that length is none."""

_BASE64_COLUMNS: Final = (76, 64)  # MIME and GNU base64; PEM and OpenSSL
_HEX_COLUMNS: Final = 60  # xxd -p
_URL_ALPHABET: Final = bytes.maketrans(b"+/", b"-_")
_END_OF_LINE: Final = re.compile(rb"\r?\n")

# A table says what becomes of each character; its keys are all that occur in what it is applied to.
_Table = Mapping[int, str]


def forms(secret: bytes) -> frozenset[bytes]:
    """Everything that gives the secret away when it is found in a text.

    For the secret, for what it is without line ends around it, with the ends of its lines as LF and as CRLF, and for
    each of its lines of at least 8 bytes: the `verbatim_forms` and the `encoded_forms`. Forms shorter than 6 bytes are
    left out.
    """
    return verbatim_forms(secret) | encoded_forms(secret)


def verbatim_forms(secret: bytes) -> frozenset[bytes]:
    """What is recognised only as it is: the secret itself; its UTF-16LE; as it is escaped in URLs, in JSON, for shells,
    in XML and HTML, and between quotes that are doubled (CSV, SQL, YAML) or have a backslash before them."""
    found = set(_verbatim(lines_of(secret)))
    for text in _wholes(secret):
        found.update(_verbatim([text]))
    return _long_enough(found)


def encoded_forms(secret: bytes) -> frozenset[bytes]:
    """What means the same with a line end anywhere within it: the base64 and base64url of the secret and of its
    UTF-16LE, as far as the secret alone determines it, wherever it begins in what is encoded; its hexadecimal digits.
    Of the secret as a whole also the lines by themselves into which tools wrap these, since something may be put
    before each."""
    found: set[bytes] = set()
    for line in lines_of(secret):
        found.update(_encoded(line))
    for text in _wholes(secret):
        found.update(_encoded(text))
        found.update(_wrapped(text))
    return _long_enough(found)


def lines_of(secret: bytes) -> list[bytes]:
    """The lines of a secret of several that are recognised by themselves, without their ends."""
    return [line for line in _END_OF_LINE.split(secret) if len(line) >= MIN_LINE_BYTES] if b"\n" in secret else []


def _wholes(secret: bytes) -> set[bytes]:
    texts = {secret, secret.strip(b"\r\n")}
    if b"\n" in secret:
        for whole in list(texts):
            lines = _END_OF_LINE.split(whole)
            texts |= {b"\n".join(lines), b"\r\n".join(lines)}
    return texts


def _long_enough(found: Iterable[bytes]) -> frozenset[bytes]:
    return frozenset(form for form in found if len(form) >= MIN_FORM_BYTES)


def _verbatim(texts: Sequence[bytes]) -> Iterator[bytes]:
    """Of one text, or of several without line ends."""
    yield from texts
    # Byte by byte: what these leave as it is stays what it was, whatever its encoding.
    latin = [text.decode("latin-1") for text in texts]
    for escaped in _escaped(latin, _BYTE_TABLES):
        yield escaped.encode("latin-1")
    for escaped in _escaped(latin, [_BASH]):
        yield _bash_quoted(escaped).encode("latin-1")
    decoded = [text for text in map(_as_text, texts) if text is not None]
    for text in decoded:
        yield text.encode("utf-16-le")
    for escaped in _escaped(decoded, _JSON_TABLES):
        yield escaped.encode()


def _encoded(data: bytes) -> Iterator[bytes]:
    yield from _base64(data)
    if (text := _as_text(data)) is not None:
        yield from _base64(text.encode("utf-16-le"))
    yield data.hex().encode()
    yield data.hex().upper().encode()


def _base64(data: bytes) -> Iterator[bytes]:
    for shift, first in enumerate((0, 2, 3)):
        encoded = base64.b64encode(bytes(shift) + data)
        # Of the last character but the padding, the secret determines a part; all of it if nothing follows.
        whole = (shift + len(data)) * 8 // 6
        for end in {whole, len(encoded.rstrip(b"=")), len(encoded)}:
            form = encoded[first:end]
            yield form
            yield form.translate(_URL_ALPHABET)


def _wrapped(data: bytes) -> Iterator[bytes]:
    text = _as_text(data)
    for plain in (data,) if text is None else (data, text.encode("utf-16-le")):
        encoded = base64.b64encode(plain)
        for width in _BASE64_COLUMNS:
            yield from _lines(encoded, width)
            yield from _lines(encoded.rstrip(b"="), width)
    yield from _lines(data.hex().encode(), _HEX_COLUMNS)


def _lines(form: bytes, width: int) -> Iterator[bytes]:
    return (form[start : start + width] for start in range(0, len(form), width))


def _as_text(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _escaped(texts: Sequence[str], tables: Sequence[_Table]) -> Iterator[str]:
    """The texts as each table has them, once where several agree on all. Several have no line ends in them."""
    joined = "\n".join(texts)
    codes = sorted(set(map(ord, joined)) - ({ord("\n")} if len(texts) > 1 else set()))
    if not codes:
        return
    pick = itemgetter(*codes, codes[0])
    seen = set()
    for table in tables:
        images: tuple[str, ...] = pick(table)
        if images not in seen:
            seen.add(images)
            escaped = joined.translate(dict(zip(codes, images, strict=False)))
            yield from escaped.split("\n") if len(texts) > 1 else (escaped,)


def _bash_quoted(escaped: str) -> str:
    """What `printf %q` of bash makes of it, which looks at what precedes a character, too."""
    escaped = re.sub(r"(^|[:=])~", r"\1\\~", escaped)
    return f"\\{escaped}" if escaped.startswith("#") else escaped


def _url_tables() -> Iterator[_Table]:
    letters = string.ascii_letters + string.digits
    kept = (
        "",  # every character that is not a letter or a digit
        "-._",  # PHP
        "-._~",  # RFC 3986, curl, Go
        "-._~/",  # Python
        "-._*",  # HTML forms, Java
        "-._~!*'()",  # encodeURIComponent
        "-._~$&+=:@",  # Go, in paths
        "-._~!*'();,/?:@&=+$#",  # encodeURI
    )
    for pattern in ("%{:02X}", "%{:02x}"):
        yield {code: pattern.format(code) for code in range(256)}
        for safe in kept:
            table = {code: chr(code) if chr(code) in letters + safe else pattern.format(code) for code in range(256)}
            yield table
            yield {**table, ord(" "): "+"}


def _shell_tables() -> Iterator[_Table]:
    plain = {code: chr(code) for code in range(256)}
    yield plain | {ord("'"): r"'\''"}
    yield plain | {ord("'"): "'\"'\"'"}
    yield plain | {ord(character): f"\\{character}" for character in '\\"$`'}
    # $'…', for what has line ends and other control characters; what is beyond ASCII depends on the locale.
    controls = {code: f"\\{code:03o}" for code in (*range(32), 127)}
    named = {
        ord(character): f"\\{name}" for character, name in zip("\a\b\x1b\f\n\r\t\v'\\", "abEfnrtv'\\", strict=True)
    }
    yield plain | controls | named
    yield plain | controls | named | {code: f"\\{code:03o}" for code in range(128, 256)}


def _markup_tables() -> Iterator[_Table]:
    plain = {code: chr(code) for code in range(256)}
    ampersand, less, greater = {ord("&"): "&amp;"}, {ord("<"): "&lt;"}, {ord(">"): "&gt;"}
    double = ({}, *({ord('"'): entity} for entity in ("&quot;", "&#34;")))
    single = ({}, *({ord("'"): entity} for entity in ("&#x27;", "&#39;", "&apos;")))
    # Text; attributes; those who escape what need not be.
    for angles in ({}, less, less | greater):
        for quotes, apostrophes in itertools.product(double, single):
            yield plain | ampersand | angles | quotes | apostrophes


def _quoted_tables() -> Iterator[_Table]:
    plain = {code: chr(code) for code in range(256)}
    yield plain | {ord("'"): "''"}  # SQL, YAML, PowerShell
    yield plain | {ord('"'): '""'}  # CSV
    yield plain | {ord(character): f"\\{character}" for character in "\\'\""}


class _JsonTable(dict[int, str]):
    """One way to write the characters of a JSON string. Takes in each character beyond ASCII as it is met."""

    def __init__(self, *, ascii_only: bool, upper: bool, slash: bool, unsafe: bytes) -> None:
        self._ascii_only = ascii_only
        self._pattern = "\\u{:04X}" if upper else "\\u{:04x}"
        plain = {code: chr(code) for code in range(32, 127 if ascii_only else 128)}
        controls = {code: self._numbered(code) for code in (*range(32), 127) if code not in plain}
        named = {ord(character): f"\\{name}" for character, name in zip('\b\f\n\r\t"\\', 'bfnrt"\\', strict=True)}
        super().__init__(plain | controls | named)
        if slash:
            self[ord("/")] = "\\/"
        self.update((code, self._numbered(code)) for code in unsafe)

    def __missing__(self, code: int) -> str:
        image = self[code] = self._numbered(code) if self._ascii_only else chr(code)
        return image

    def _numbered(self, code: int) -> str:
        units = chr(code).encode("utf-16-be")
        return "".join(self._pattern.format(int.from_bytes(units[at : at + 2])) for at in range(0, len(units), 2))


def _json_tables() -> Iterator[_Table]:
    # What is harmless in JSON and not in HTML, as it is thought of by Go, PowerShell 5 and .NET.
    harmful = (b"", b"<>&", b"<>&'", b"<>&'+`\"")
    for ascii_only, upper, slash, unsafe in itertools.product((False, True), (False, True), (False, True), harmful):
        yield _JsonTable(ascii_only=ascii_only, upper=upper, slash=slash, unsafe=unsafe)


_BYTE_TABLES: Final = (*_url_tables(), *_shell_tables(), *_markup_tables(), *_quoted_tables())
_JSON_TABLES: Final = tuple(_json_tables())
_BASH: Final = {
    code: f"\\{chr(code)}" if chr(code) in " \t!\"$&'()*,;<>?[\\]^`{|}" else chr(code) for code in range(256)
}
