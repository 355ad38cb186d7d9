"""One tokenizer for all tests of a process: its encodings take a second to load."""

from proxy.gateway.counting.tokenizer import Tokenizer

TOKENIZER = Tokenizer()
