"""Canonical tables: built from public data sets, or mapped from a user's own and checked."""
