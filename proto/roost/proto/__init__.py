"""The wire contract: protobuf messages in a descriptor pool of their own."""
