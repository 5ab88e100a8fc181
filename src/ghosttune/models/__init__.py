"""Models: loading, adapters, and which module is what."""
