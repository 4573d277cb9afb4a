"""The REST transport: Open Inference Protocol over HTTP on aiohttp."""
