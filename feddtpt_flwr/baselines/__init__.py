"""Searches of the field, written against the same interface and charged for the same queries."""
