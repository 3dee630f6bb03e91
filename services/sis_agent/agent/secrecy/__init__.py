"""The forms in which a secret may appear, and the masking of them in a stream of bytes."""
