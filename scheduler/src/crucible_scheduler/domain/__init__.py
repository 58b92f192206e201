"""What the scheduler decides, as pure functions of their arguments: no network, no clock of its own."""
