"""What a run measured: the metrics file, the report page and logging; loads no torch."""
