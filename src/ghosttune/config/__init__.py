"""Settings: what they are (schema), where they come from (loading), what follows from them (resolve)."""
