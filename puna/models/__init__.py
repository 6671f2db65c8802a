"""Model files: their description, lowering to a program, weights, tokenizer, chat template, and finding one by name."""
