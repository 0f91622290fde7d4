"""Runnable scripts, one a table or figure of the embedded-model-flows paper."""
