"""Tests of the words and of the normal numbers of genkern.random."""
