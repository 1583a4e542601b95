"""Passes that reorder real arithmetic, or replace primitives by one faster operator."""
