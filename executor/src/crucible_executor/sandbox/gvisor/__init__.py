"""The sandbox port on gVisor: `runsc` driven directly on bundles of our own."""
