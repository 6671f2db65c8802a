"""The native interpreter for CPUs: the binding of `csrc/`."""

from puna.kernels.cpu.binding import NativeInterpreter, paths, settled_path
from puna.kernels.cpu.threads import available_threads

__all__ = ["NativeInterpreter", "available_threads", "paths", "settled_path"]
