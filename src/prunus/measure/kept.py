"""Measurements of this machine in the user's cache folder: JSON files, each replaced in one step."""

from __future__ import annotations

import json
import os
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunus.core.errors import PrunusError, PrunusWarning

LARGEST_FILE = 64 << 20


def read_kept(path: Path, *, form: int, what: str) -> dict[str, Any] | None:
    """What a file holds; None where there is none, or where it cannot be used, which is said.

    Args:
        form: the number that the file's `format` must be.
        what: what it holds, for the warning.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("it is larger than any such file")
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict) or told.get("format") != form:
            raise ValueError("it has another form")
        return told
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        unusable(path, what, error)
        return None


def unusable(path: Path, what: str, error: Exception) -> None:
    """Warn that a kept file is left out."""
    said = f"the cached {what} in {path} cannot be used ({error}): they are measured anew"
    warnings.warn(PrunusWarning(said), stacklevel=4)


def write_kept(path: Path, told: Mapping[str, Any]) -> None:
    """Replace a file in one step; its folder is made. Errors: `PrunusError` where it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(told), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise PrunusError(
            f"cannot write {path}: {error.strerror or error}. Set PRUNUS_CACHE to a folder that can be written"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
