"""The edge: command line, configuration, lifecycle, REST, gRPC, admin and metrics."""
