"""Tokenizers: SentencePiece models, tokenizer.json files and WordPiece."""
