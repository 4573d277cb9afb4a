"""HTTP/2 for the server's own gRPC transport: frames, header compression, connections. Nothing here knows gRPC."""
