"""A text generator that shows how a language model works. Nothing heavy is imported here."""

__version__ = "0.1.0"
