"""NumPy twins of every operator, and an interpreter made of them. Slow on purpose, and easy to read."""
