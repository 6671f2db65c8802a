"""Scheduling: which tokens of which sequences a step computes, and which blocks of KV memory they live in.

Pure bookkeeping: no clock (time is passed in), no device, no randomness, so the same calls give the same steps in
the engine, in a simulator and in a test.
"""
