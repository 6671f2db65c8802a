"""Workloads: traces of requests, when they come, how long they are, and what many measurements come to.

Knows neither engines nor schedulers: what is drawn here is run by a benchmark or by the simulator.
"""
