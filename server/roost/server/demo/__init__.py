"""The demo: real models from installed wheels, served by a real server, asked through tritonclient."""
