"""Secrets as the tools that people use write them: nothing that these print gets past the masker."""

from __future__ import annotations

import base64
import html
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable
from typing import Final
from xml.sax import saxutils

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from services.sis_agent.agent.secrecy.masking import MASK, Masker
from services.sis_agent.agent.secrecy.secret_forms import MIN_FORM_BYTES, MIN_LINE_BYTES, forms

SECRETS: Final = {
    "word": b"correct-horse_battery.staple",
    "eight": b"aB3$xY9!",
    "nine": b"hunter2>?",
    "ten": b"~~>>??~~ab",
    "shell": b'#it\'s $HOME "and" `more` \\o/ !bang',
    "brackets": b"~a=~b:~c*?[x]{1,2}(y)<z>|&;^%@,+",
    "url": b"p@ss/w0rd?x=1&y=2+3 4#5%6",
    "umlauts": "pässwörd→€😀".encode(),
    "controls": b"tab\there\x01\x1b\x7f\x08bell\x07",
    "binary": bytes(range(1, 256)),
    "long": b"eyJhbGciOiJIUzI1NiJ9." + base64.urlsafe_b64encode(bytes(range(120))),
    "ends": b"\r\nwith line ends\r\n",
}
KEYS: Final = {
    "rsa": generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    ),
    "ed25519": Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
}
KEYS["crlf"] = KEYS["ed25519"].replace(b"\n", b"\r\n")


SHELL: Final = {
    "printf": 'printf %s "$S"',
    "printf %q": 'printf %q "$S"',
    "@Q": 'printf %s "${S@Q}"',
    "bash -x": 'set -x; : "$S"',
    "declare": "declare -p S",
    "base64": 'printf %s "$S" | base64',
    "base64 -w0": 'printf %s "$S" | base64 -w0',
    "base64 -w64": 'printf %s "$S" | base64 -w64',
    "od": "printf %s \"$S\" | od -An -v -tx1 | tr -d ' \\n'",
}
# Where they are installed; by the name of the program. Some of them know no bytes but those of texts.
FURTHER: Final = {
    "dash -x": "dash -xc ': \"$S\"'",
    "xxd -p": 'printf %s "$S" | xxd -p',
    "xxd -p -u": 'printf %s "$S" | xxd -p -u -c 0',
    "openssl base64": 'printf %s "$S" | openssl base64',
    "jq tojson": "jq -nrj '$ENV.S | tojson'",
    "jq -a": "jq -nja '$ENV.S'",
    "jq @uri": "jq -nrj '$ENV.S | @uri'",
    "jq @sh": "jq -nrj '$ENV.S | @sh'",
    "jq @html": "jq -nrj '$ENV.S | @html'",
    "jq @csv": "jq -nrj '[$ENV.S] | @csv'",
    "jq @base64": "jq -nrj '$ENV.S | @base64'",
    "iconv": 'printf %s "$S" | iconv -f UTF-8 -t UTF-16LE',
    "iconv, base64": 'printf %s "$S" | iconv -f UTF-8 -t UTF-16LE | base64',
}
SCRIPTS: Final = SHELL | {name: script for name, script in FURTHER.items() if shutil.which(name.split()[0].strip(","))}
FOR_TEXT: Final = ("jq", "iconv")

PYTHON: Final[dict[str, Callable[[str], str]]] = {
    "quote": urllib.parse.quote,
    "quote, all": lambda text: urllib.parse.quote(text, safe=""),
    "quote, in lower case": lambda text: re.sub("%..", lambda match: match[0].lower(), urllib.parse.quote(text)),
    "quote_plus": urllib.parse.quote_plus,
    "encodeURI": lambda text: urllib.parse.quote(text, safe=";,/?:@&=+$-_.!~*'()#"),
    "encodeURIComponent": lambda text: urllib.parse.quote(text, safe="-_.!~*'()"),
    "json": json.dumps,
    "json, Unicode": lambda text: json.dumps(text, ensure_ascii=False),
    "json, slashes": lambda text: json.dumps(text).replace("/", "\\/"),
    "json, Go": lambda text: json.dumps(text, ensure_ascii=False).translate(
        {60: "\\u003c", 62: "\\u003e", 38: "\\u0026"}
    ),
    "shlex": shlex.quote,
    "HTML": html.escape,
    "HTML of Go and Jinja": lambda text: html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
    "HTML, attributes alone": lambda text: text.replace("&", "&amp;").replace('"', "&quot;"),
    "XML": saxutils.escape,
    "XML with quotes": lambda text: saxutils.escape(text, {'"': "&quot;", "'": "&apos;"}),
    "CSV": lambda text: '"' + text.replace('"', '""') + '"',
    "SQL and YAML": lambda text: "'" + text.replace("'", "''") + "'",
    "addslashes": lambda text: re.sub(r"([\\'\"])", r"\\\1", text),
}

NOTHING: Final = re.compile(rb"(\+ : |declare -x S=)?[$'\"\s]*\*\*\*['\"\s]*")
"""A mask, and what a tool puts around it."""


def printed(script: str, secret: bytes, locale: str) -> bytes:
    """What a script of the shell prints to both of its streams, with the secret in $S."""
    environment = {b"PATH": os.environb[b"PATH"], b"LC_ALL": locale.encode(), b"S": secret}
    command = ["/bin/bash", "-c", script]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True).stdout


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
@pytest.mark.parametrize("name", [*SECRETS, *KEYS])
def test_what_tools_print_is_masked(name: str, locale: str) -> None:
    secret = (SECRETS | KEYS)[name]
    masker = Masker([secret])
    for tool, script in SCRIPTS.items():
        if name == "binary" and tool.startswith(FOR_TEXT):
            continue
        masked = masker.data(printed(script, secret, locale))
        assert NOTHING.fullmatch(masked), f"{tool}: {masked!r}"


@pytest.mark.parametrize("name", [name for name in [*SECRETS, *KEYS] if name != "binary"])
def test_what_python_makes_of_them_is_masked(name: str) -> None:
    secret = (SECRETS | KEYS)[name].decode()
    masker = Masker([secret.encode()])
    for tool, escape in PYTHON.items():
        masked = masker.data(escape(secret).encode())
        assert NOTHING.fullmatch(masked), f"{tool}: {masked!r}"
        assert masker.text(escape(secret)) == masked.decode()


@pytest.mark.parametrize("name", ["word", "shell", "brackets", "url", "umlauts", "rsa"])
def test_what_else_quotes_line_by_line_is_masked(name: str) -> None:
    """GNU printf uses other quotes where a text has line ends."""
    secret = (SECRETS | KEYS)[name]
    masked = Masker([secret]).data(printed('env printf %q "$S"', secret, "C.UTF-8"))
    assert re.fullmatch(rb"[$'\"\\n]*(\*\*\*[$'\"\\n]*)+", masked), masked


@given(st.binary(min_size=8, max_size=60), st.binary(max_size=7), st.binary(max_size=7), st.booleans())
def test_base64_is_masked_wherever_the_secret_is(secret: bytes, before: bytes, after: bytes, safe: bool) -> None:
    """But for the characters that what is around it has a part in."""
    encode = base64.urlsafe_b64encode if safe else base64.b64encode
    encoded = encode(before + secret + after)
    first, mask, rest = Masker([secret]).data(encoded).partition(MASK)
    assert mask
    assert first == encoded[: math.ceil(len(before) * 8 / 6)][: len(first)]
    assert len(rest) <= len(encoded) - len(before + secret) * 8 // 6
    assert after or not rest


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("width", [1, 64, 76])
def test_base64_that_is_wrapped_is_masked_wherever_the_secret_is(width: int, end: bytes) -> None:
    """`printf 'Authorization: Bearer %s' "$TOKEN" | base64`, for tokens short and long."""
    for secret in (SECRETS["word"], SECRETS["long"], SECRETS["long"] * 2):
        masker = Masker([secret])
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for size in range(60):
                encoded = encode(b"x" * size + secret + b"after")
                wrapped = end.join(encoded[start : start + width] for start in range(0, len(encoded), width))
                first, mask, rest = masker.data(wrapped).partition(MASK)
                assert mask
                first, rest = (part.translate(None, b"\r\n") for part in (first, rest))
                assert first == encoded[: math.ceil(size * 8 / 6)]
                assert rest == encoded[(size + len(secret)) * 8 // 6 :]


@pytest.mark.parametrize("name", ["word", "long", "binary"])
def test_hexadecimal_that_is_wrapped_is_masked(name: str) -> None:
    masker = Masker([SECRETS[name]])
    for digits in (b"00" * 7 + SECRETS[name].hex().encode(), b"00" * 7 + SECRETS[name].hex().upper().encode()):
        lines = [digits[start : start + 60] for start in range(0, len(digits), 60)]
        assert masker.data(b"\n".join(lines)) == masker.data(b"\r\n".join(lines)) == b"00" * 7 + MASK


@given(
    st.text(st.characters(codec="utf-8"), min_size=8, max_size=40), st.text(st.characters(codec="utf-8"), max_size=5)
)
def test_utf_16_is_masked(secret: str, around: str) -> None:
    masker = Masker([secret.encode()])
    assert NOTHING.fullmatch(masker.data(secret.encode("utf-16-le")))
    wide = (around + secret).encode("utf-16-le")
    assert MASK in masker.data(base64.b64encode(wide))
    assert not set(masker.data(base64.b64encode(secret.encode("utf-16-le")))) - set(MASK)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_each_line_of_a_key_is_masked_by_itself(key: bytes) -> None:
    masker = Masker([key])
    for line in key.split(b"\n"):
        line = line.rstrip(b"\r")
        if len(line) >= MIN_LINE_BYTES:
            assert masker.data(b"> " + line + b"\r\n") == b"> ***\r\n"
            assert masker.data(base64.b64encode(line)) == masker.data(line.hex().encode()) == MASK
    for ends in (b"\n", b"\r\n"):
        whole = ends.join(key.split(b"\r\n" if b"\r" in key else b"\n"))
        assert masker.data(whole).strip() == masker.data(base64.b64encode(whole)) == MASK
    wrapped = base64.encodebytes(key)
    shown = b"\n".join(b"key: " + line for line in wrapped.splitlines()[:-1])
    assert set(masker.data(shown).splitlines()) == {b"key: ***"}


def test_forms_too_short_to_prove_anything_are_left_out() -> None:
    for secret in (b"", b"a", b"abc", b"short\nline", b"x\n" * 10, *SECRETS.values(), *KEYS.values()):
        assert all(len(form) >= MIN_FORM_BYTES for form in forms(secret))
    assert b"line" not in forms(b"a short\nline")


def test_a_plain_secret_has_few_forms() -> None:
    """Each of them costs speed."""
    assert len(forms(b"Tr0ub4dor")) <= 20
