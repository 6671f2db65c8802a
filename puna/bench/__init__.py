"""Measuring: workloads, the machine's limits, kernels, and what else ran meanwhile. `puna bench` prints it."""
