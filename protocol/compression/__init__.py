"""Fewer bytes on the wire: how lists of keys are coded, and numbers in half the bytes."""
