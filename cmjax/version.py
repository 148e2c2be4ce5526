"""The version of cmjax, in a module of its own so that inner modules need not import `cmjax`."""

__version__ = "0.1.0"
