"""Values that never change, and objects that a hook gets as they are: by reference."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import logging
import pathlib
import re
import types
import uuid
import weakref
import zoneinfo

from async_trainer.snapshot.kind import PLAIN, REFERENCE, Kind

_PLAIN: tuple[type, ...] = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    enum.Enum,
    pathlib.PurePath,
    decimal.Decimal,
    fractions.Fraction,
)

_REFERENCES: tuple[type, ...] = (
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    zoneinfo.ZoneInfo,
    uuid.UUID,
    range,
    slice,
    re.Pattern,
    re.Match,
    type,
    type(NotImplemented),
    type(...),
    types.CodeType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.ModuleType,
    types.GenericAlias,
    types.UnionType,
    property,
    BaseException,
    types.TracebackType,
    logging.Logger,
    logging.LoggerAdapter,
    weakref.ProxyType,
    weakref.CallableProxyType,
)

KINDS: dict[type, Kind] = dict.fromkeys(_REFERENCES, REFERENCE) | dict.fromkeys(_PLAIN, PLAIN)
