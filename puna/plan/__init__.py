"""Planning: what a system would do, found without running it. Today the simulator around the real scheduler.

Knows schedulers and workloads; no model, no device, no clock: time is what a step-time model says.
"""
