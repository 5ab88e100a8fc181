"""The version, in one place: the build and `run.json` read it here."""

__version__ = "0.1.0"
