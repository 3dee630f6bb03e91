"""Sessions: what their cookies are, which requests they prove, when they end; and the file of their keys."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from gateway import main
from gateway.errors import CrossOrigin
from gateway.exchange import Exchange
from gateway.sessions import IDLE, LONGEST, Session, Sessions
from services.runtime.errors import InvalidArgument, Unauthenticated
from tests.support.exchanges import Sent, exchange
from tests.unit.gateway.test_http_rules import load

KEY, OLD_KEY, OTHER_KEY = (Fernet.generate_key() for _ in range(3))
NOW = 1_800_000_000.0
HOST = "127.0.0.1:8080"
NAME = "sis-session-8080"
SECURE = "__Host-sis-session"


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions([KEY], secure=False, clock=clock)


async def given_cookie(exchange_: Exchange, sent: Sent) -> str:
    """The Set-Cookie header of the answer; "" for none."""
    await exchange_.begin(200, [])
    (found,) = sent.headers.get_all("set-cookie") or [""]
    return str(found)


async def opened(sessions: Sessions, token: str = "token", host: str = HOST) -> str:
    """What the browser sends from then on."""
    found, sent = exchange("POST", "/session", [("host", host)])
    sessions.open(found, token)
    return (await given_cookie(found, sent)).partition(";")[0]


def request(*cookies: str, verb: str = "GET", host: str = HOST, more: Sequence[tuple[str, str]] = ()) -> Exchange:
    headers = [("host", host), ("sec-fetch-site", "same-origin"), *more]
    return exchange(verb, "/v1/jobs", [*headers, *(("cookie", each) for each in cookies)])[0]


async def renewed(sessions: Sessions, cookie: str, verb: str = "GET") -> str:
    """What the answer to a request sets; "" for nothing."""
    headers = [("host", HOST), ("sec-fetch-site", "same-origin"), ("cookie", cookie)]
    found, sent = exchange(verb, "/v1/jobs", headers)
    sessions.find(found)
    return await given_cookie(found, sent)


# --- the cookie ---


@pytest.mark.parametrize(
    "token",
    ["token", "a b", "the administrator's token", '"quoted"', "a;b=c", "\\\\", "~" * 1_000, "%0d%0aSet-Cookie:a"],
)
async def test_what_was_sealed_is_found(sessions: Sessions, token: str) -> None:
    cookie = await opened(sessions, token)
    assert re.fullmatch(NAME + "=[A-Za-z0-9_=-]+", cookie)
    assert sessions.find(request(cookie)) == Session(token, int(NOW), int(NOW))
    assert sessions.proof(request(cookie)) == b"Bearer " + token.encode()


@pytest.mark.parametrize(
    ("secure", "host", "name", "attributes"),
    [
        (True, "sis.example", SECURE, "Path=/; HttpOnly; SameSite=Strict; Secure"),
        (True, "sis.example:8443", SECURE, "Path=/; HttpOnly; SameSite=Strict; Secure"),
        (False, HOST, NAME, "Path=/; HttpOnly; SameSite=Strict"),
        (False, "[::1]:8080", NAME, "Path=/; HttpOnly; SameSite=Strict"),
        (False, "[::1]", "sis-session", "Path=/; HttpOnly; SameSite=Strict"),
        (False, "localhost", "sis-session", "Path=/; HttpOnly; SameSite=Strict"),
        (False, "x:1;a", "sis-session", "Path=/; HttpOnly; SameSite=Strict"),
    ],
)
async def test_the_cookie_is_for_this_origin_alone(secure: bool, host: str, name: str, attributes: str) -> None:
    sessions = Sessions([KEY], secure=secure, clock=Clock())
    found, sent = exchange("POST", headers=[("host", host)])
    sessions.open(found, "token")
    value, _, rest = (await given_cookie(found, sent)).partition("; ")
    assert (value.partition("=")[0], rest) == (name, f"{attributes}; Max-Age=3600")
    ended, sent = exchange("DELETE", headers=[("host", host)])
    sessions.end(ended)
    # A browser removes what has the same name, path and domain, and takes `__Host-` with Secure alone.
    assert await given_cookie(ended, sent) == f"{name}=; {attributes}; Max-Age=0"


async def test_a_token_that_no_cookie_can_hold_is_refused(sessions: Sessions) -> None:
    assert len(await opened(sessions, "x" * 2_900)) <= 4_096
    with pytest.raises(InvalidArgument, match="token: is too long for a session"):
        await opened(sessions, "x" * 3_100)


@pytest.mark.parametrize(
    "beside",
    [
        "{}",
        "a=b; {}; c=d",
        "a=b;{};c=d",
        "  {}\t ",
        'json={{"a":1,"b":[2]}}; {}',
        '"; {}',
        "a; {}",
        "=; {}; ;;",
        'a="b; {}; c="',
        "$Version=1; {}; $Path=/",
        "a[]=ü; {}",
        "x" + NAME + "=1; {}; " + NAME + "x=2; " + NAME.upper() + "=3",
    ],
)
async def test_the_cookie_is_found_beside_any_others(sessions: Sessions, beside: str) -> None:
    assert sessions.find(request(beside.format(await opened(sessions)))).token == "token"


@pytest.mark.parametrize(
    "beside",
    ["a=b {}", "a=b, {}", "a=b\t{}", "a=b\xa0{}", "a=b;\xa0{}", "a=b;\x85{}", 'a="b {}"', "x{}", "{}, a=b", "$ {}"],
)
async def test_a_cookie_is_not_part_of_another(beside: str) -> None:
    """Whoever has another host of the domain can set any cookie here but one that begins with `__Host-`."""
    sessions = Sessions([KEY], secure=True, clock=Clock())
    cookie = await opened(sessions)
    with pytest.raises(Unauthenticated):
        sessions.find(request(beside.format(cookie)))


async def test_of_two_cookies_none_is_believed(sessions: Sessions) -> None:
    mine, planted = await opened(sessions), await opened(sessions, "attacker")
    for cookies in ((f"{mine}; {planted}",), (f"{planted}; {mine}",), (f"{mine}; {mine}",), (mine, planted)):
        with pytest.raises(Unauthenticated):
            sessions.find(request(*cookies))
    with pytest.raises(Unauthenticated, match=f"2 cookies {NAME}; remove them"):
        sessions.find(request(f"{mine}; {planted}"))


async def test_stacks_of_one_host_do_not_sign_each_other_out(sessions: Sessions, clock: Clock) -> None:
    other = Sessions([OTHER_KEY], secure=False, clock=clock)
    cookies = f"{await opened(sessions)}; {await opened(other, 'theirs', 'localhost:8081')}"
    assert sessions.find(request(cookies)).token == "token"
    assert other.find(request(cookies, host="localhost:8081")).token == "theirs"


@pytest.mark.parametrize("change", [lambda c: c[:-4], lambda c: c[:-5] + "A" + c[-4:], lambda c: c[:30], str.swapcase])
async def test_what_is_damaged_is_no_session(sessions: Sessions, change: Callable[[str], str]) -> None:
    name, _, value = (await opened(sessions)).partition("=")
    with pytest.raises(Unauthenticated, match="ended"):
        sessions.find(request(f"{name}={change(value)}"))


@pytest.mark.parametrize("value", ["ü", "a", "gAAAAAA", "null", "=" * 9, "\xff" * 60, "x" * 20_000, '""'])
def test_what_is_no_seal_is_no_session(sessions: Sessions, value: str) -> None:
    with pytest.raises(Unauthenticated, match="ended"):
        sessions.find(request(f"{NAME}={value}"))


@pytest.mark.parametrize("cookies", [[], [""], [f"{NAME}="], [NAME], ["other=1"]])
def test_without_a_cookie_there_is_none(sessions: Sessions, cookies: list[str]) -> None:
    with pytest.raises(Unauthenticated, match="sign in, or send"):
        sessions.find(request(*cookies))


@given(st.text(st.characters(max_codepoint=255)), st.text(st.characters(max_codepoint=255)))
def test_no_cookie_and_no_host_is_a_fault(cookie: str, host: str) -> None:
    sessions = Sessions([KEY], secure=False)
    for text in (cookie, f"{NAME}={cookie}", f"sis-session={cookie}"):
        with pytest.raises(Unauthenticated):
            sessions.find(request(text))
        with pytest.raises(Unauthenticated):
            sessions.find(request(text, host=host))


# --- how long it lasts ---


async def test_it_ends_when_it_was_not_used_for_an_hour(sessions: Sessions, clock: Clock) -> None:
    clock.now += 0.9
    cookie = await opened(sessions)
    clock.now = NOW + 3_599.999
    assert sessions.find(request(cookie)).ends_at().timestamp() == NOW + 2 * 3_600 - 1
    clock.now = NOW + 3_600
    with pytest.raises(Unauthenticated, match="ended; sign in again"):
        sessions.find(request(cookie))


async def test_use_renews_it_for_twelve_hours_at_the_most(sessions: Sessions, clock: Clock) -> None:
    cookie = await opened(sessions)
    for step in range(1, 15):
        clock.now = NOW + step * 3_000
        told = await renewed(sessions, cookie)
        cookie, _, attributes = told.partition(";")
        left = min(3_600, 12 * 3_600 - step * 3_000)
        assert attributes.endswith(f"; Max-Age={left}") and "HttpOnly; SameSite=Strict" in attributes
        assert sessions.find(request(cookie)).signed_in == NOW
    clock.now = NOW + 12 * 3_600 - 1
    cookie = (await renewed(sessions, cookie)).partition(";")[0]
    assert sessions.find(request(cookie)).ends_at().timestamp() == NOW + 12 * 3_600
    clock.now += 1
    with pytest.raises(Unauthenticated, match="ended"):
        sessions.find(request(cookie))
    assert (timedelta(hours=1), timedelta(hours=12)) == (IDLE, LONGEST)


async def test_it_is_not_renewed_at_every_request(sessions: Sessions, clock: Clock) -> None:
    cookie = await opened(sessions)
    clock.now = NOW + 59
    assert await renewed(sessions, cookie) == ""
    clock.now = NOW + 60
    again = await renewed(sessions, cookie)
    assert again.startswith(f"{NAME}=") and again.partition(";")[0] != cookie


@pytest.mark.parametrize("verb", ["POST", "PUT", "PATCH", "DELETE"])
async def test_what_may_be_answered_late_does_not_renew_it(sessions: Sessions, clock: Clock, verb: str) -> None:
    """An upload that is answered after signing out would sign in again."""
    cookie = await opened(sessions)
    clock.now = NOW + 3_000
    assert await renewed(sessions, cookie, verb) == ""
    assert await renewed(sessions, cookie, "HEAD") != ""


async def test_a_clock_that_is_set_back_does_not_prolong_it(sessions: Sessions, clock: Clock) -> None:
    cookie = await opened(sessions)
    clock.now = NOW - 60
    assert await renewed(sessions, cookie) == ""
    clock.now = NOW - 61
    with pytest.raises(Unauthenticated, match="ended"):
        sessions.find(request(cookie))


# --- keys ---


async def test_keys_can_be_changed(clock: Clock) -> None:
    before = Sessions([OLD_KEY], secure=False, clock=clock)
    both = Sessions([KEY, OLD_KEY], secure=False, clock=clock)
    after = Sessions([KEY], secure=False, clock=clock)
    old, new = await opened(before), await opened(both)
    assert both.find(request(old)).token == both.find(request(new)).token == after.find(request(new)).token
    for sessions, cookie in ((after, old), (before, new)):
        with pytest.raises(Unauthenticated, match="ended"):
            sessions.find(request(cookie))
    clock.now += 120
    assert after.find(request((await renewed(both, old)).partition(";")[0])).signed_in == NOW


async def test_without_a_key_they_last_as_long_as_the_process(clock: Clock) -> None:
    one, two = Sessions(secure=False, clock=clock), Sessions(secure=False, clock=clock)
    cookie = await opened(one)
    assert one.find(request(cookie)).token == "token"
    with pytest.raises(Unauthenticated):
        two.find(request(cookie))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("{0}", 1),
        ("{0}\n", 1),
        ("{0}\r\n{1}=\r\n", 2),
        ("\n  {1}=\n\n{0}\n", 2),
    ],
)
def test_a_file_of_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, count: int) -> None:
    file = tmp_path / "keys"
    file.write_text(text.format(*(key.decode().rstrip("=") for key in (KEY, OLD_KEY))))
    keys = load(monkeypatch, LISTEN="127.0.0.1:0", SESSION_KEY_FILE=str(file)).session_keys()
    assert len(keys) == count and {*keys} <= {KEY, OLD_KEY}
    Sessions(keys, secure=True)


def test_without_a_file_there_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, LISTEN="127.0.0.1:0").session_keys() == []


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b" \n",
        KEY[:-2],
        KEY + b"=",
        KEY + KEY,
        KEY + b"\n#a comment\n",
        b"+/" + KEY[2:],
        KEY[:20] + b"!" + KEY[20:],
        b"\xff" * 43,
        b"A" * 44,
    ],
    ids=range(11),
)
def test_a_file_that_is_wrong_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    settings = load(monkeypatch, LISTEN="127.0.0.1:0", SESSION_KEY_FILE=str(file))
    with pytest.raises(SystemExit) as caught:
        asyncio.run(main.serve(settings))
    said = str(caught.value.code)
    assert said.startswith("error: SIS_GATEWAY_SESSION_KEY_FILE: ")
    assert ("lines of 32 bytes" in said) == (content is not None) and KEY[:20].decode() not in said


# --- whose page it is ---

SAME = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("reads", "writes", "headers"),
    [
        (True, True, {"sec-fetch-site": "same-origin"}),
        (True, True, {"sec-fetch-site": "same-origin", "origin": SAME}),
        # A proxy has changed Host, or its port; a page that sends no referrer has "null" for its origin.
        (True, True, {"sec-fetch-site": "same-origin", "origin": "https://sis.example:8443"}),
        (True, True, {"sec-fetch-site": "same-origin", "origin": "null"}),
        (True, True, {"origin": SAME}),
        (True, False, {"sec-fetch-site": "none"}),
        (True, False, {}),
        (False, False, {"sec-fetch-site": "same-site"}),
        (False, False, {"sec-fetch-site": "cross-site"}),
        (False, False, {"sec-fetch-site": "cross-site", "origin": SAME}),
        (False, False, {"sec-fetch-site": "none, same-origin"}),
        (False, False, {"sec-fetch-site": "Same-Origin"}),
        (False, False, {"sec-fetch-site": "ü"}),
        (False, False, {"origin": "null"}),
        (False, False, {"origin": "http://127.0.0.1"}),
        (False, False, {"origin": "http://127.0.0.1:8081"}),
        (False, False, {"origin": "https://127.0.0.1:8080"}),
        (False, False, {"origin": "http://localhost:8080"}),
        (False, False, {"origin": "http://evil.example"}),
        (False, False, {"origin": f"{SAME}.evil.example"}),
        (False, False, {"origin": "http://evil@127.0.0.1:8080"}),
        (False, False, {"origin": f"{SAME}/"}),
        (False, False, {"origin": f"{SAME}, {SAME}"}),
        (False, False, {"origin": "http://["}),
        (False, False, {"origin": "//127.0.0.1:8080"}),
    ],
)
async def test_a_session_serves_own_pages_alone(
    sessions: Sessions, reads: bool, writes: bool, headers: dict[str, str]
) -> None:
    cookie = await opened(sessions)
    for verb in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"):
        found, sent = exchange(verb, "/v1/jobs", [("host", HOST), ("cookie", cookie), *headers.items()])
        if reads if verb in ("GET", "HEAD") else writes:
            assert sessions.find(found).token == "token"
        else:
            with pytest.raises(CrossOrigin):
                sessions.find(found)
            assert await given_cookie(found, sent) == ""


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://sis.example", "sis.example", True),
        ("https://sis.example:8443", "sis.example:8443", True),
        ("http://sis.example", "sis.example", False),
        ("https://sis.example", "", False),
        ("null", "", False),
        ("https://", "", True),  # which is no origin that a browser has
    ],
)
def test_over_tls_its_pages_are_https(origin: str, host: str, own: bool) -> None:
    sessions = Sessions([KEY], secure=True)
    found, _ = exchange("POST", headers=[("origin", origin), *([("host", host)] if host else [])])
    if own:
        sessions.check_origin(found)
    else:
        with pytest.raises(CrossOrigin):
            sessions.check_origin(found)


async def test_two_headers_of_one_name_are_not_believed(sessions: Sessions) -> None:
    cookie = await opened(sessions)
    for name, value in (("sec-fetch-site", "same-origin"), ("origin", SAME)):
        headers = [("host", HOST), ("cookie", cookie), (name, value), (name, value)]
        with pytest.raises(CrossOrigin):
            sessions.find(exchange("POST", headers=headers)[0])


async def test_an_authorization_header_is_what_counts(sessions: Sessions, clock: Clock) -> None:
    """No page of somebody else's can have a browser send one."""
    cookie = await opened(sessions)
    clock.now += 600
    for value in ("Bearer mine", "", "Basic eDp4"):
        headers = [("cookie", cookie), ("authorization", value), ("sec-fetch-site", "cross-site"), ("host", HOST)]
        found, sent = exchange("POST", headers=headers)
        assert sessions.proof(found) == value.encode()
        assert await given_cookie(found, sent) == ""


async def test_the_cookie_shows_no_token(sessions: Sessions) -> None:
    token = "a-token-of-some-length"
    cookie = await opened(sessions, token)
    assert token not in cookie and json.dumps(token)[1:-1] not in cookie
    assert await opened(sessions, token) != cookie
