"""The benchmarks of this package: ``async-trainer bench``, ``async-trainer profile``.

A scenario is a module with a function ``measure(effort) -> list[Row]``, listed in ``scenarios.py``.
"""
