"""The privileged half of an executor: a small process of its own that builds, watches and ends sandboxes.

It imports the standard library and this package's own stdlib-only modules, nothing else.
"""
