"""The sandbox layer of the executor: one port, its limits and its verdicts, and the implementations behind it."""
