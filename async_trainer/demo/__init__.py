"""``async-trainer demo``: one training, once with inline callbacks and once with the same callbacks in the background.

Read ``loop.py`` first: a plain training loop that fires events. Then ``callbacks.py``, what listens to them, and
``run.py``, where a callback's place is chosen.
"""
