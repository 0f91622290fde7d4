"""``python -m benchmarks``: EMF against its peers, on all problems of ``benchmarks.core``."""

from benchmarks.core import main

main()
