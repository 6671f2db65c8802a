"""Calls of tools: the formats in which models write them, read piece by piece; grammars that force them; reasoning."""
