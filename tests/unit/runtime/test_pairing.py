"""Pairing codes: what a person copies, and what it proves."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.pairing import InvalidCode, PairingCode, enrolled_mac, mac, renewal_message

CA = b"the certificate of a CA"


@given(st.binary(), st.binary(min_size=1))
def test_a_code_that_was_read_back_is_the_one_that_was_minted(ca: bytes, other: bytes) -> None:
    code = PairingCode.mint(ca)
    again = PairingCode.parse(code.text())
    assert again == code
    assert again.key() == code.key()
    assert again.trusts(ca)
    assert not again.trusts(ca + other)


def test_a_copied_code_may_have_blanks_around_it_and_capitals() -> None:
    code = PairingCode.mint(CA)
    assert PairingCode.parse(f"  {code.text().upper()}\n") == code


def test_the_form_and_the_key_are_as_they_were_agreed() -> None:
    text = "sis1-" + "a" * 8 + "-" + "b" * 32 + "-" + "c" * 32
    code = PairingCode.parse(text)
    assert code.pairing_id == "a" * 8
    assert code.text() == text
    assert len(code.key()) == 32
    assert code.key().hex() == "19ca71ce4d137b9babb8b4bfa3ef31e05254b97da71f7c2f87bb874a534b0df7"
    minted = PairingCode.mint(CA)
    assert minted.fingerprint == hashlib.sha256(CA).digest()[:20]


def test_no_two_codes_are_alike() -> None:
    codes = [PairingCode.mint(CA) for _ in range(100)]
    assert len({code.pairing_id for code in codes}) == len({code.key() for code in codes}) == 100


@given(st.text())
def test_any_other_text_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidCode) as caught:
        PairingCode.parse(f"sis2-{text}")
    assert str(caught.value) == "this is no pairing code: copy all of what `sis agents pair` printed, from sis1- on"


@given(st.data())
def test_a_damaged_code_is_refused_or_proves_nothing(data: st.DataObject) -> None:
    code = PairingCode.mint(CA)
    text = code.text()
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.sampled_from("a7-0é")) + text[place + 1 :]
    try:
        found = PairingCode.parse(damaged)
    except InvalidCode:
        return
    whole = (found.pairing_id, found.key(), found.trusts(CA)) == (code.pairing_id, code.key(), True)
    assert whole == (damaged == text)


def test_a_representation_hides_the_secret() -> None:
    code = PairingCode.mint(CA)
    assert code.text().split("-")[2] not in repr(code)


@given(st.binary(min_size=32, max_size=32), st.binary(), st.binary())
def test_a_proof_is_good_for_its_key_and_its_bytes_alone(key: bytes, keys: bytes, others: bytes) -> None:
    assert (mac(key, keys) == mac(key, others)) == (keys == others)
    assert mac(key, keys) != mac(bytes([key[0] ^ 1]) + key[1:], keys)


def test_the_proof_of_an_enrolment_covers_all_of_it() -> None:
    key, parts = bytes(32), ["web-1", "paris", "7f"]
    proof = enrolled_mac(key, *parts)
    assert proof == mac(key, b"sis.enrolled.v1\x00web-1\x00paris\x007f")
    for place in range(3):
        assert enrolled_mac(key, *(part + "0" * (number == place) for number, part in enumerate(parts))) != proof
    assert enrolled_mac(key, "web", "1-paris", "7f") != enrolled_mac(key, "web-1", "paris", "7f")
    assert enrolled_mac(bytes(31) + b"\x01", *parts) != proof


def test_what_is_signed_for_a_renewal() -> None:
    assert renewal_message("web-1", b"\x00keys") == b"sis.keys.v1\x00web-1\x00\x00keys"
