"""The operator set and its interpreters, NumPy (the readable truth) and C++; no files, no requests."""
