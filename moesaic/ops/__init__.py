"""Math on tensors: one operation a file, its slow and obvious oracle under `reference/`."""
