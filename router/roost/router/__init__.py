"""The middle: traffic, admission, mesh, placement, eviction, batching, worker link and stores."""
