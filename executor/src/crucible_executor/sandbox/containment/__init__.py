"""What is known of a sandbox's confinement, looked at from the host and from inside."""
