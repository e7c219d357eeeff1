"""The operators: one spec each, by family."""
