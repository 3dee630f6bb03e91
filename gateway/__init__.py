"""The gateway: the suite's public methods over HTTP, transcoded from their descriptors. It holds no state."""
