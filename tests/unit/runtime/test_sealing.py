"""Sealed secrets: opened by one key, for one use."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.sealing import LeaseBinding, Unsealable, key_id, seal, unseal

KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
BINDING = LeaseBinding(job_id=42, attempt=1, agent="web-1", lease_id="l-1", ref="admin")


@given(st.binary(max_size=2_000))
def test_what_is_sealed_opens_again(secret: bytes) -> None:
    sealed = seal(secret, PUBLIC, BINDING)
    assert unseal(sealed, KEY, BINDING) == secret
    assert sealed != seal(secret, PUBLIC, BINDING)


@pytest.mark.parametrize(
    "change", [{"job_id": 43}, {"attempt": 2}, {"agent": "web-2"}, {"lease_id": "l-2"}, {"ref": "run_as"}]
)
def test_nothing_opens_for_another_use(change: dict[str, object]) -> None:
    sealed = seal(b"a secret", PUBLIC, BINDING)
    with pytest.raises(Unsealable):
        unseal(sealed, KEY, dataclasses.replace(BINDING, **change))  # type: ignore[arg-type]


def test_nothing_opens_with_another_key() -> None:
    with pytest.raises(Unsealable):
        unseal(seal(b"a secret", PUBLIC, BINDING), X25519PrivateKey.generate(), BINDING)


@given(st.data())
def test_a_changed_ciphertext_does_not_open(data: st.DataObject) -> None:
    sealed = bytearray(seal(b"a secret", PUBLIC, BINDING))
    place = data.draw(st.integers(0, len(sealed) - 1))
    # A public key has one bit that does not count.
    sealed[place] ^= data.draw(st.integers(1, 127 if place == 31 else 255))
    with pytest.raises(Unsealable):
        unseal(bytes(sealed), KEY, BINDING)


@given(st.binary(max_size=100))
def test_other_bytes_do_not_open(sealed: bytes) -> None:
    with pytest.raises(Unsealable):
        unseal(sealed, KEY, BINDING)


@given(st.builds(LeaseBinding, *[st.integers(1, 9)] * 2, *[st.text("ab1", min_size=1, max_size=3)] * 3))
def test_two_uses_never_look_alike(other: LeaseBinding) -> None:
    mine = LeaseBinding(1, 1, "a", "b", "a1")
    assert (mine.info() == other.info()) == (mine == other)


@pytest.mark.parametrize("field", ["agent", "lease_id", "ref"])
def test_a_text_that_would_make_two_uses_alike_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="NUL"):
        dataclasses.replace(BINDING, **{field: "a\0b"}).info()  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [b"", b"short", bytes(32)])
def test_a_key_that_keeps_nothing_secret_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError):
        seal(b"a secret", key, BINDING)


def test_a_key_is_known_by_its_hash() -> None:
    assert key_id(PUBLIC) == key_id(bytes(PUBLIC))
    assert len(key_id(PUBLIC)) == 16
    assert key_id(PUBLIC) != key_id(bytes(32))
