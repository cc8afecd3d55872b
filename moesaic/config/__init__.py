"""Settings as plain validated data; loads no torch."""
