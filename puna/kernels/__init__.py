"""The operator set and its interpreters: NumPy (the readable truth) and C++; a floor that knows no files and no requests."""
