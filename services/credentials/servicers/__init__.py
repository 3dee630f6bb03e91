"""Thin adapters: convert, one call, convert back. They decide nothing."""
