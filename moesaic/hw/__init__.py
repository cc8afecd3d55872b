"""The machine: what it is and how to treat it well."""
