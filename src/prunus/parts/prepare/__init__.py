"""Preparations: the same outputs from other modules, so that there are other units."""

from prunus.parts.prepare.factorize import Factorize

__all__ = ["Factorize"]
