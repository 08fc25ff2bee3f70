"""Models: loading, the head with its one forward, adapters and quantisation."""
