"""Proxies: the calls of any object, made in the background, in order, on captured arguments.

``Proxy`` is what the caller has, ``Handle`` what its calls return. ``Proxied`` is behind them: the object, its lane.
``CallTask`` is one of its methods, as the runtime sees it.
"""

from __future__ import annotations

from async_trainer.proxy.make import make_proxy
from async_trainer.proxy.proxied import MISSING, Proxied

__all__ = ["MISSING", "Proxied", "make_proxy"]
