"""The worker process and one adapter module per framework."""
