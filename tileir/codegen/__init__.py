"""engine → upstream dialects → PTX."""
