"""Numbers with units, short enough for a table."""

from __future__ import annotations


def seconds(value: float) -> str:
    """``0.00123`` -> ``"1.2 ms"``, ``83.2`` -> ``"83 s"``, ``7260`` -> ``"2 h 1 min"``."""
    if value < 1e-3:
        return f"{1e6 * value:.0f} µs" if value else "0 s"
    if value < 0.9995:
        return f"{1e3 * value:.{1 if value < 0.00995 else 0}f} ms"
    return f"{value:.1f} s" if value < 9.95 else duration(value)


def duration(value: float) -> str:
    """Whole seconds, or what is longer: ``83`` -> ``"83 s"``, ``200`` -> ``"3 min 20 s"``."""
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def brief(value: float) -> str:
    """The same in 7 letters at most: ``"1.2 ms"``, ``"83 s"``, ``"121 min"``, ``"49 h"``."""
    if value < 119.5:
        return seconds(value)
    return f"{value / 60:.0f} min" if value < 24 * 3600 else f"{value / 3600:,.0f} h"


def megabytes(nbytes: float) -> str:
    """``1234567`` -> ``"1.2 MB"``."""
    return f"{nbytes / 1e6:.1f} MB" if nbytes < 1e8 else f"{nbytes / 1e9:.1f} GB"


def many(count: int) -> str:
    """``12345`` -> ``"12,345"``."""
    return f"{count:,}"
