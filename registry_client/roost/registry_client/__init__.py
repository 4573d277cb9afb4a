"""Where models come from: repositories, configuration files and digests."""
