"""Errors of every operator over the range of its inputs, and equality of bits."""
