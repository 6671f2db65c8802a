"""Models from one container into another, and into other element types: `convert`."""

from puna.models.conversion.convert import Converted, convert
from puna.models.conversion.writing import Progress

__all__ = ["Converted", "Progress", "convert"]
