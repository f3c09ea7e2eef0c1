"""Lanes whose hooks run in a child process: what is sent there, and what the child does with it.

``ship`` sends callbacks, ``pickling`` values, ``session`` tells one child; ``child`` is what runs there. How a child is
started, watched, replaced and ended is in ``runtime/placement/process.py``.
"""
