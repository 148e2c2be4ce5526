"""The version, apart from the package's face, which inner modules do not import."""

__version__ = "0.1.0"
