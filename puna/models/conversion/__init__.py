"""Models from one container into another, and into other element types: `convert`."""

from puna.models.conversion.convert import Converted, Progress, convert

__all__ = ["Converted", "Progress", "convert"]
